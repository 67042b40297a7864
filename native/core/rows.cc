#include "core/rows.h"

#include <algorithm>

namespace semisparse {

Rows::Rows(const Geometry& geometry, size_t most_rows)
    : geometry_(geometry),
      pointers_(most_rows * geometry.taps.size()),
      origins_(most_rows),
      corners_(most_rows),
      dests_(most_rows),
      inside_(geometry.pad_top == 0 && geometry.pad_left == 0 &&
              (geometry.out_height - 1) * geometry.stride_y + geometry.taps.back()[0] <
                  geometry.height &&
              (geometry.out_width - 1) * geometry.stride_x + geometry.taps.back()[1] <
                  geometry.width),
      in_place_(inside_ && geometry.stride_y == 1 && geometry.stride_x == 1 &&
                geometry.height == geometry.out_height && geometry.width == geometry.out_width) {}

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

void Rows::fill(size_t first, size_t m, Order order) { fill_places(first, m, order, false); }

size_t Rows::fill_alike(size_t first, size_t most, Order order) {
  return fill_places(first, most, order, true);
}

size_t Rows::fill_places(size_t first, size_t most, Order order, bool alike) {
  if (inside_) {
    fill_inside(first, most);
    return most;
  }
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
  size_t m = 0;
  for (; m < most; ++m) {
    size_t position = index;
    if (positions != nullptr) {
      const Positions::Place& place = positions->kept[index];
      position = place.position;
      y = place.y;
      x = place.x;
    }
    const int64_t y0 = y * g.stride_y - g.pad_top;
    const int64_t x0 = x * g.stride_x - g.pad_left;
    const bool whole = y0 >= 0 && x0 >= 0 && y0 < last_y && x0 < last_x;
    if (alike && m > 0 && whole != inside) break;
    inside &= whole;
    dests_[m] = static_cast<uint32_t>(image * plane + position);
    corners_[m] = {y0, x0};
    origins_[m] =
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
  if (inside) {
    std::copy_n(origins_.data(), m, pointers_.data());
    offsets_ = g.offsets.data();
  } else {
    spread(m, order);
    offsets_ = nullptr;
  }
  return m;
}

void Rows::spread(size_t m, Order order) {
  const Geometry& g = geometry_;
  const size_t taps = g.taps.size();
  const size_t row_step = order == Order::kByRow ? taps : 1;
  const size_t tap_step = order == Order::kByRow ? 1 : m;
  for (size_t i = 0; i < m; ++i) {
    const auto [y0, x0] = corners_[i];
    for (size_t t = 0; t < taps; ++t) {
      const auto [dy, dx] = g.taps[t];
      // Unsigned, so that one comparison sees both ends.
      const bool inside = static_cast<uint64_t>(y0 + dy) < static_cast<uint64_t>(g.height) &&
                          static_cast<uint64_t>(x0 + dx) < static_cast<uint64_t>(g.width);
      pointers_[i * row_step + t * tap_step] = inside ? origins_[i] + g.offsets[t] : g.zeros;
    }
  }
}

}  // namespace semisparse
