// A convolution's positions by list.
#include <algorithm>

#include "core/conv.h"
#include "core/division.h"

namespace semisparse {
namespace {

// Copied together, while they are still in the first-level cache.
constexpr size_t kCopiedFloats = 4096;
// Positions of a depthwise strip: two rows and more of the wide planes, so that most inputs are
// still in the first-level cache when the next row wants them.
constexpr size_t kStrip = 256;

}  // namespace

void Conv::gather_panels(const Gather& gather, const GatherPlanes& planes, size_t pitch) const {
  const size_t count = gather.from.size();
  const size_t step = gather.copies.empty()
                          ? count
                          : std::max<size_t>(1, kCopiedFloats / (out_channels() * mr_)) * mr_;
  copy_rows(gather.copies.data(), gather.copy_begin.front(), planes.y, planes.ldy, out_channels());
  for (size_t from = 0; from < count; from += step) {
    const size_t to = std::min(count, from + step);
    gather_tiles(gather, planes, pitch, from, to);
    gather_fill(gather, planes, from, to);
  }
  gather_blanks(gather, planes);
}

void Conv::gather_tiles(const Gather& gather, const GatherPlanes& planes, size_t pitch,
                        size_t begin, size_t end) const {
  const bool linear = planes.residual != nullptr && !gather.copies.empty();
  const float* added = linear ? nullptr : planes.residual;
  const Finish& finish = linear ? kLinear : finish_;
  SmallArray<const float*, 64> rows(tiles_per_call() * mr_);
  SmallArray<std::ptrdiff_t, 16> offsets(static_cast<size_t>(desc_.kernel[0] * tap_columns()));
  igemm::Tile tile{};
  for (int64_t ky = 0; ky < desc_.kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < tap_columns(); ++kx) {
      const auto pixels =
          ky * desc_.dilations[0] * static_cast<std::ptrdiff_t>(pitch) + kx * desc_.dilations[1];
      offsets[tile.taps++] = pixels * static_cast<std::ptrdiff_t>(planes.ldx);
    }
  }
  tile.channels = tap_channels();
  tile.rows = rows.data();
  tile.offsets = offsets.data();
  tile.ldy = planes.ldy;
  tile.lo = finish.lo;
  tile.hi = finish.hi;
  tile.fetch_y = planes.fetch_y;
  const Calls calls(end - begin, mr_, tiles_per_call());
  for (size_t i = 0; i < calls.size(); ++i) {
    const size_t first = begin + calls.first_row(i);
    tile.m = begin + calls.first_row(i + 1) - first;
    tile.dests = gather.dest.data() + first;
    for (size_t row = 0; row < tile.m; ++row) {
      rows[row] = planes.x + gather.from[first + row] * planes.ldx;
    }
    for (const Panel& panel : panels_) {
      tile.weights = weights_.get() + panel.weights;
      tile.init = bias_.get() + panel.first;
      tile.y = planes.y + panel.first;
      tile.residual = added == nullptr ? nullptr : added + panel.first;
      tile.n = panel.count;
      panel.kernel->run(tile);
      activate_rows(finish, tile.dests, tile.m, tile.y, tile.ldy, tile.n);
    }
  }
}

void Conv::gather_depthwise(const Gather& gather, const GatherPlanes& planes, size_t pitch) const {
  SmallArray<const float*, kStrip> rows(kStrip);
  dwconv::Strip strip = strip_of(finish_);
  strip.rows = rows.data();
  strip.column_step = desc_.dilations[1] * static_cast<std::ptrdiff_t>(planes.ldx);
  strip.row_step = desc_.dilations[0] * static_cast<std::ptrdiff_t>(pitch * planes.ldx);
  strip.y = planes.y;
  strip.ldy = planes.ldy;
  strip.write_ahead = planes.fetch_y ? kWriteAhead : 0;
  const size_t count = gather.from.size();
  const auto taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  strip.x = planes.x;
  for (size_t from = 0; from < count; from += strip.m) {
    strip.m = std::min(kStrip, count - from);
    strip.dests = gather.dest.data() + from;
    if (!gather.windows.empty()) strip.windows = gather.windows.data() + from;
    if (!gather.taps.empty()) strip.taps = gather.taps.data() + from * taps;
    for (size_t i = 0; i < strip.m && gather.taps.empty(); ++i) {
      // Signed, because the first tap may be outside of the plane.
      const auto pixel = static_cast<std::ptrdiff_t>(static_cast<int32_t>(gather.from[from + i]));
      rows[i] = planes.x + pixel * static_cast<std::ptrdiff_t>(planes.ldx);
    }
    dwconv_->run(strip);
    activate_rows(finish_, strip.dests, strip.m, strip.y, strip.ldy, strip.channels);
    gather_fill(gather, planes, from, from + strip.m);
  }
  gather_blanks(gather, planes);
}

void Conv::gather_blanks(const Gather& gather, const GatherPlanes& planes) const {
  blank_rows(gather.blank.data(), gather.blank.size(), planes.residual, planes.y, planes.ldy, 0,
             out_channels());
}

}  // namespace semisparse
