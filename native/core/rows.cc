#include "core/rows.h"

#include <algorithm>

namespace semisparse {

Rows::Rows(const Geometry& geometry, size_t most_rows)
    : geometry_(geometry),
      pointers_(most_rows * geometry.taps.size()),
      origins_(most_rows),
      corners_(most_rows),
      dest_end_(most_rows),
      dests_(most_rows * (geometry.positions == nullptr ? 1 : geometry.positions->most_dests)) {}

void Rows::fill(size_t first, size_t m, Order order) {
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
  dest_count_ = 0;
  for (size_t i = 0; i < m; ++i) {
    const auto base = static_cast<uint32_t>(image * plane);
    if (positions != nullptr) {
      y = positions->kept[index].y;
      x = positions->kept[index].x;
      for (size_t d = positions->dest_begin[index]; d < positions->dest_begin[index + 1]; ++d) {
        dests_[dest_count_++] = base + positions->dests[d];
      }
    } else {
      dests_[dest_count_++] = base + static_cast<uint32_t>(index);
    }
    dest_end_[i] = static_cast<uint32_t>(dest_count_);

    const int64_t y0 = y * g.stride_y - g.pad_top;
    const int64_t x0 = x * g.stride_x - g.pad_left;
    inside &= y0 >= 0 && x0 >= 0 && y0 < last_y && x0 < last_x;
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
  if (inside) {
    std::copy_n(origins_.data(), m, pointers_.data());
    offsets_ = g.offsets.data();
  } else {
    spread(m, order);
    offsets_ = nullptr;
  }
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
