#include "core/rows.h"

#include <algorithm>
#include <limits>

namespace semisparse {

TapRange taps_inside(int64_t first, int64_t step, int64_t taps, int64_t size) {
  const auto before = [&](int64_t end) {  // how many taps lie before that place
    if (end <= first) return uint32_t{0};
    // A division takes as long as a filter's multiplications.
    if (end - first > (taps - 1) * step) return static_cast<uint32_t>(taps);
    return static_cast<uint32_t>(step == 1 ? end - first : (end - first + step - 1) / step);
  };
  return {before(0), before(size)};
}

Rows::Rows(const Geometry& geometry, size_t most_rows)
    : geometry_(geometry),
      pointers_(most_rows * geometry.taps.size()),
      origins_(most_rows),
      corners_(most_rows),
      windows_(most_rows),
      dests_(most_rows),
      inside_(geometry.pad_top == 0 && geometry.pad_left == 0 &&
              (geometry.out_height - 1) * geometry.stride_y + geometry.taps.back()[0] <
                  geometry.height &&
              (geometry.out_width - 1) * geometry.stride_x + geometry.taps.back()[1] <
                  geometry.width),
      in_place_(inside_ && geometry.stride_y == 1 && geometry.stride_x == 1 &&
                geometry.height == geometry.out_height && geometry.width == geometry.out_width) {
  // Columns of outputs none of whose taps is beside the plane.
  const int64_t step = geometry.stride_x;
  const int64_t room = geometry.width - 1 - geometry.taps.back()[1] + geometry.pad_left;
  whole_begin_ = static_cast<size_t>((geometry.pad_left + step - 1) / step);
  whole_end_ = room < 0 ? 0 : static_cast<size_t>(room / step + 1);
}

// The layers with few channels spend as long on finding their rows as on multiplying them, and most
// of those are pointwise or read a padded copy.
void Rows::fill_inside(size_t first, size_t m) {
  const Geometry& g = geometry_;
  const auto plane = static_cast<size_t>(g.out_height * g.out_width);
  const auto channels = static_cast<size_t>(g.in_channels);
  const auto out_width = static_cast<size_t>(g.out_width);
  const auto in_row = static_cast<size_t>(g.width);
  const auto in_plane = static_cast<size_t>(g.height) * in_row;
  const auto step = static_cast<size_t>(g.stride_x);
  const size_t row_step = static_cast<size_t>(g.stride_y) * in_row;
  offsets_ = g.offsets.data();
  size_t image = first / g.rows_per_image;
  size_t index = first % g.rows_per_image;
  size_t i = 0;
  if (g.positions == nullptr) {
    // From one end of a line of outputs to the other nothing changes but the place: 2 cycles a row
    // where the loop below takes 8, a tenth of MobileNetV2's first convolution (EPYC, Zen 4).
    const size_t line = in_place_ ? plane : out_width;
    while (i < m) {
      const size_t y = index / line;
      const size_t x = index % line;
      const size_t count = std::min(m - i, line - x);
      const size_t pixel = image * in_plane + (in_place_ ? index : y * row_step + x * step);
      const float* from = g.x + pixel * channels;
      const auto dest = static_cast<uint32_t>(image * plane + index);
      for (size_t j = 0; j < count; ++j) {
        pointers_[i + j] = from + j * step * channels;
        dests_[i + j] = dest + static_cast<uint32_t>(j);
      }
      i += count;
      index += count;
      if (index == plane) {
        index = 0;
        ++image;
      }
    }
    return;
  }
  const Positions::Place* kept = g.positions->kept.data();
  for (; i < m; ++i) {
    const auto [place, y, x] = kept[index];
    const size_t position = place + image * plane;
    dests_[i] = static_cast<uint32_t>(position);
    const size_t pixel = in_place_ ? position : image * in_plane + y * row_step + x * step;
    pointers_[i] = g.x + pixel * channels;
    if (++index == g.rows_per_image) {
      index = 0;
      ++image;
    }
  }
}

void Rows::fill(size_t first, size_t m) {
  if (inside_) {
    fill_inside(first, m);
  } else if (locate(first, m)) {
    std::copy_n(origins_.data(), m, pointers_.data());
    offsets_ = geometry_.offsets.data();
  } else {
    spread(m);
    offsets_ = nullptr;
  }
}

size_t Rows::fill_windows(size_t first, size_t most, bool alike) {
  windowed_ = false;
  if (inside_) {
    fill_inside(first, most);
    return most;
  }
  const Geometry& g = geometry_;
  const auto plane = static_cast<size_t>(g.out_height * g.out_width);
  const auto out_width = static_cast<size_t>(g.out_width);
  const Positions::Place* kept = g.positions == nullptr ? nullptr : g.positions->kept.data();
  const float** pointers = pointers_.data();
  uint32_t* dests = dests_.data();
  dwconv::Window* windows = windows_.data();
  const std::ptrdiff_t step = g.stride_x * g.in_channels;
  bool windowed = !alike;
  size_t image = first / g.rows_per_image;
  size_t index = first % g.rows_per_image;
  size_t line = std::numeric_limits<size_t>::max();  // of outputs, that the next two are of
  TapRange rows{};
  const float* from_line = nullptr;  // what its first output reads first
  size_t m = 0;
  while (m < most) {
    // Of a line those that are whole, or of its ends one, or with a mask a position.
    const size_t position = kept == nullptr ? index : kept[index].position;
    const size_t y = kept == nullptr ? index / out_width : kept[index].y;
    const size_t x = position - y * out_width;
    if (y != line) {
      const int64_t top = static_cast<int64_t>(y) * g.stride_y - g.pad_top;
      rows = taps_inside(top, g.dilation[0], g.kernel[0], g.height);
      from_line = g.x + ((static_cast<int64_t>(image) * g.height + top) * g.width - g.pad_left) *
                            g.in_channels;
      line = y;
    }
    const bool between = x >= whole_begin_ && x < whole_end_;
    const size_t count = kept != nullptr || !between ? 1 : std::min(most - m, whole_end_ - x);
    if (alike) {
      const bool cut = !between || rows.begin != 0 || rows.end != g.kernel[0];
      if (m > 0 && cut != windowed) break;
      windowed = cut;
    }
    const float* from = from_line + static_cast<std::ptrdiff_t>(x) * step;
    const size_t dest = image * plane + position;
    for (size_t i = 0; i < count; ++i) {
      pointers[m + i] = from + static_cast<std::ptrdiff_t>(i) * step;
      dests[m + i] = static_cast<uint32_t>(dest + i);
    }
    if (windowed) {
      const int64_t left = static_cast<int64_t>(x) * g.stride_x - g.pad_left;
      const TapRange columns = taps_inside(left, g.dilation[1], g.kernel[1], g.width);
      std::fill_n(windows + m, count,
                  dwconv::Window{rows.begin, rows.end, columns.begin, columns.end});
    }
    m += count;
    index += count;
    if (index == g.rows_per_image) {
      index = 0;
      ++image;
      line = std::numeric_limits<size_t>::max();
    }
  }
  windowed_ = windowed;
  return m;
}

// Where the rows read and write; whether all their taps lie inside the plane.
bool Rows::locate(size_t first, size_t m) {
  const Geometry& g = geometry_;
  const Positions* positions = g.positions;
  const auto plane = static_cast<size_t>(g.out_height * g.out_width);
  const int64_t last_y = g.height - g.taps.back()[0];
  const int64_t last_x = g.width - g.taps.back()[1];
  size_t image = first / g.rows_per_image;
  size_t index = first % g.rows_per_image;
  auto y = static_cast<int64_t>(index) / g.out_width;
  auto x = static_cast<int64_t>(index) % g.out_width;
  bool inside = true;
  for (size_t i = 0; i < m; ++i) {
    size_t position = index;
    if (positions != nullptr) {
      const Positions::Place& place = positions->kept[index];
      position = place.position;
      y = place.y;
      x = place.x;
    }
    const int64_t y0 = y * g.stride_y - g.pad_top;
    const int64_t x0 = x * g.stride_x - g.pad_left;
    inside &= y0 >= 0 && x0 >= 0 && y0 < last_y && x0 < last_x;
    dests_[i] = static_cast<uint32_t>(image * plane + position);
    corners_[i] = {y0, x0};
    origins_[i] =
        g.x + ((static_cast<int64_t>(image) * g.height + y0) * g.width + x0) * g.in_channels;

    ++x;
    if (x == g.out_width) {
      x = 0;
      ++y;
    }
    if (++index == g.rows_per_image) {
      index = 0;
      ++image;
      x = y = 0;
    }
  }
  return inside;
}

void Rows::spread(size_t m) {
  const Geometry& g = geometry_;
  for (size_t i = 0; i < m; ++i) {
    const auto [y0, x0] = corners_[i];
    for (size_t t = 0; t < g.taps.size(); ++t) {
      const auto [dy, dx] = g.taps[t];
      // Unsigned, so that one comparison sees both ends.
      const bool inside = static_cast<uint64_t>(y0 + dy) < static_cast<uint64_t>(g.height) &&
                          static_cast<uint64_t>(x0 + dx) < static_cast<uint64_t>(g.width);
      pointers_[i + t * m] = inside ? origins_[i] + g.offsets[t] : g.zeros;
    }
  }
}

}  // namespace semisparse
