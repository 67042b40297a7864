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

void Conv::gather_pointwise(const Gather& gather, const GatherPlanes& planes) const {
  const size_t count = gather.from.size();
  const size_t step = gather.copies.empty()
                          ? count
                          : std::max<size_t>(1, kCopiedFloats / (out_channels() * mr_)) * mr_;
  copy_rows(gather.copies.data(), gather.copy_begin.front(), planes.y, planes.ldy, out_channels());
  for (size_t from = 0; from < count; from += step) {
    const size_t to = std::min(count, from + step);
    gather_tiles(gather, planes, from, to);
    gather_fill(gather, planes, from, to);
  }
  gather_blanks(gather, planes);
}

void Conv::gather_tiles(const Gather& gather, const GatherPlanes& planes, size_t begin,
                        size_t end) const {
  const bool linear = planes.residual != nullptr && !gather.copies.empty();
  const float* added = linear ? nullptr : planes.residual;
  const Finish& finish = linear ? kLinear : finish_;
  SmallArray<const float*, 64> rows(tiles_per_call() * mr_);
  const std::ptrdiff_t offset = 0;
  igemm::Tile tile{};
  tile.taps = 1;
  tile.channels = static_cast<size_t>(desc_.in_channels);
  tile.rows = rows.data();
  tile.offsets = &offset;
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

// What all strips have in common.
dwconv::Strip Conv::gather_strip(const GatherPlanes& planes) const {
  dwconv::Strip strip{};
  strip.taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  strip.channels = out_channels();
  strip.columns = static_cast<size_t>(desc_.kernel[1]);
  strip.weights = weights_.get();
  strip.ldw = dw_stride_;
  strip.bias = bias_.get();
  strip.y = planes.y;
  strip.ldy = planes.ldy;
  strip.lo = finish_.lo;
  strip.hi = finish_.hi;
  return strip;
}

void Conv::gather_depthwise(const Gather& gather, const GatherPlanes& planes,
                            const std::ptrdiff_t* offsets) const {
  SmallArray<const float*, kStrip> rows(kStrip);
  dwconv::Strip strip = gather_strip(planes);
  strip.rows = rows.data();
  strip.offsets = offsets;
  const size_t count = gather.from.size();
  for (size_t from = 0; from < count; from += strip.m) {
    strip.m = std::min(kStrip, count - from);
    strip.dests = gather.dest.data() + from;
    for (size_t i = 0; i < strip.m; ++i) rows[i] = planes.x + gather.from[from + i] * planes.ldx;
    dwconv_->run(strip);
    activate_rows(finish_, strip.dests, strip.m, strip.y, strip.ldy, strip.channels);
    gather_fill(gather, planes, from, from + strip.m);
  }
  gather_blanks(gather, planes);
}

void Conv::gather_depthwise(const GatherByTap& gather, const GatherPlanes& planes) const {
  constexpr size_t kRows = 16;
  dwconv::Strip strip = gather_strip(planes);
  SmallArray<const float*, kRows * 9> rows(kRows * strip.taps);
  strip.rows = rows.data();
  const size_t count = gather.dest.size();
  for (size_t from = 0; from < count; from += strip.m) {
    strip.m = std::min(kRows, count - from);
    strip.dests = gather.dest.data() + from;
    const uint32_t* taps = gather.from.data() + from * strip.taps;
    for (size_t i = 0; i < strip.m * strip.taps; ++i) {
      rows[i] = taps[i] == GatherByTap::kOutside ? zeros_.get() : planes.x + taps[i] * planes.ldx;
    }
    dwconv_->run(strip);
    activate_rows(finish_, strip.dests, strip.m, strip.y, strip.ldy, strip.channels);
  }
}

void Conv::gather_blanks(const Gather& gather, const GatherPlanes& planes) const {
  blank_rows(gather.blank.data(), gather.blank.size(), planes.residual, planes.y, planes.ldy, 0,
             out_channels());
}

}  // namespace semisparse
