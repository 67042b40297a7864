// What the threads of a run do: rows of output positions through the kernels.
#include <algorithm>

#include "core/conv_work.h"

namespace semisparse {
namespace {

// Copied together, while they are still in the first-level cache.
constexpr size_t kCopiedFloats = 8192;

}  // namespace

// Tiles of all groups, as Work has them.
void Conv::igemm_range(const Work& work, size_t first_tile, size_t last_tile) const {
  if (work.by_group) {
    for (size_t tile = first_tile; tile < last_tile;) {
      const Work::Piece piece = work.piece(tile, last_tile);
      const PanelGroup group = panel_group(piece.group);
      igemm_group(work, work.first_row(piece.first), work.first_row(piece.last), group);
      blank_share(work, piece.first, piece.last, group.channel, group.channels);
      tile += piece.last - piece.first;
    }
    return;
  }
  const size_t begin = work.first_row(first_tile);
  const size_t end = work.first_row(last_tile);
  const size_t step = copies() ? ceil_div(kCopiedFloats, out_channels() * mr_) * mr_ : end - begin;
  for (size_t from = begin; from < end; from += step) {
    const size_t to = std::min(end, from + step);
    igemm_tiles(work, from, to, 0, panels_.size());
    fill_rows(work, from, to, 0, out_channels());
  }
  blank_share(work, first_tile, last_tile, 0, out_channels());
}

// The parts of a tile that no panel changes.
igemm::Tile Conv::tile_of(const Work& work, Rows& rows, size_t row, size_t m) const {
  rows.fill(row, m);
  igemm::Tile tile{};
  tile.m = m;
  tile.taps = work.taps();
  tile.channels = work.channels;
  tile.rows = rows.pointers();
  tile.offsets = rows.offsets();
  tile.dests = rows.dests();
  tile.ldy = out_channels();
  tile.fetch_y = work.streams;
  tile.lo = work.finish.lo;
  tile.hi = work.finish.hi;
  return tile;
}

void Conv::set_panel(igemm::Tile& tile, const Work& work, const Panel& panel) const {
  tile.row_offset = panel.inputs;
  tile.weights = work.weights + panel.weights;
  tile.init = bias_.get() + panel.first;
  tile.y = work.y + panel.first;
  tile.residual = work.added == nullptr ? nullptr : work.added + panel.first;
  tile.n = panel.count;
}

void Conv::igemm_tiles(const Work& work, size_t begin, size_t end, size_t first_panel,
                       size_t last_panel) const {
  Rows rows(work.geometry, tiles_per_call() * mr_);
  const Calls calls(end - begin, mr_, tiles_per_call());
  for (size_t i = 0; i < calls.size(); ++i) {
    const size_t from = begin + calls.first_row(i);
    const size_t to = begin + calls.first_row(i + 1);
    igemm::Tile tile = tile_of(work, rows, from, to - from);
    const NextInputs next(rows.pointers()[tile.m - 1] + in_channels(), tile.m, tile.channels, mr_);
    for (size_t j = first_panel; j < last_panel; ++j) {
      set_panel(tile, work, panels_[j]);
      tile.prefetch = next.first(j - first_panel);
      tile.prefetch_lines = work.fetches_x ? next.lines(j - first_panel) : 0;
      panels_[j].kernel->run(tile);
      activate_rows(work.finish, tile.dests, tile.m, tile.y, tile.ldy, tile.n);
    }
  }
}

// The rows of one group of panels. Where its weights are larger than the cache, a block of them
// that fits is used for all the rows before the next one is touched, and the accumulators wait in
// between; so the weights come from memory once. The next block, or the next group, is fetched
// meanwhile. On a 7x7 plane with 512 channels: 2.42 ms in ONNX Runtime, 2.22 ms with blocks alone,
// 2.10 ms with the fetching (EPYC, Zen 4, weights from memory as in the whole network; blocks of an
// eighth of the cache gave 2.32 ms).
void Conv::igemm_group(const Work& work, size_t begin, size_t end, const PanelGroup& group) const {
  Rows rows(work.geometry, tiles_per_call() * mr_);
  // Whole taps, or parts of one where there is only one.
  const size_t taps_step =
      work.taps() == 1 ? 1 : std::clamp<size_t>(work.block_depth / work.channels, 1, work.taps());
  const size_t channels_step =
      work.taps() == 1 ? std::min(work.block_depth, work.channels) : work.channels;
  const bool parks = taps_step < work.taps() || channels_step < work.channels;
  Buffer parked;
  if (parks) parked = make_buffer((end - begin) * kWidestPanel);
  const Calls calls(end - begin, mr_, tiles_per_call());
  for (size_t tap = 0; tap < work.taps(); tap += taps_step) {
    for (size_t channel = 0; channel < work.channels; channel += channels_step) {
      const bool first = tap == 0 && channel == 0;
      const bool last = tap + taps_step >= work.taps() && channel + channels_step >= work.channels;
      const size_t taps = std::min(taps_step, work.taps() - tap);
      const size_t channels = std::min(channels_step, work.channels - channel);
      const size_t turns = taps * (channels / 4);
      for (size_t i = 0; i < calls.size(); ++i) {
        const size_t from = begin + calls.first_row(i);
        const size_t to = begin + calls.first_row(i + 1);
        igemm::Tile tile = tile_of(work, rows, from, to - from);
        if (tile.offsets != nullptr) {
          tile.offsets += tap;
        } else {
          tile.rows += tap * tile.m;
        }
        tile.taps = taps;
        tile.channels = channels;
        size_t parked_before = 0;
        for (size_t j = group.begin; j < group.end; ++j) {
          const Panel& panel = panels_[j];
          const size_t nr = panel.kernel->nr;
          const size_t block = taps * channels * nr;
          set_panel(tile, work, panel);
          tile.row_offset += channel;
          tile.weights += (tap * work.channels + channel) * nr;
          // Spread over all rows: so many lines every four channels.
          tile.prefetch_lines =
              ceil_div(block / kLineFloats, std::max<size_t>(1, calls.tiles() * turns));
          const size_t next = std::min(j + group.end - group.begin, panels_.size() - 1);
          tile.prefetch = last ? work.weights + panels_[next].weights : tile.weights + block;
          tile.prefetch += calls.first_tile(i) * turns * tile.prefetch_lines * kLineFloats;
          // A single tile reads its weights once, from one end to the other, which the processor
          // notices by itself: 960 to 1280 channels at one position take 160 us of MobileNetV4, and
          // 195 where that stream was fetched ahead (EPYC, Zen 4, AVX-512).
          if (calls.tiles() == 1) tile.prefetch_lines = 0;
          float* park = parks ? parked.get() + parked_before + (from - begin) * nr : nullptr;
          if (!first) {
            tile.init = park;
            tile.init_stride = nr;
          }
          tile.park = last ? nullptr : park;
          panel.kernel->run(tile);
          if (last) activate_rows(work.finish, tile.dests, tile.m, tile.y, tile.ldy, tile.n);
          parked_before += (end - begin) * nr;
        }
      }
    }
  }
}

void Conv::dwconv_rows(const Work& work, size_t first_tile, size_t last_tile) const {
  constexpr size_t kStrip = 64;
  const Geometry& g = work.geometry;
  // On narrow planes, where every other strip touches an edge, it is better to look at no strip's
  // edges: 14x14 with 384 channels 27 to 23 us, 7x7 with 960 channels 18 to 14 us. But with AVX2
  // 28x28 with 64 channels and 5x5 76 to 38 us.
  const bool alike =
      g.out_width > 20 && work.taps() <= dwconv_->most_taps_alike && work.tap_places == nullptr;
  const size_t begin = work.first_row(first_tile);
  const size_t end = work.first_row(last_tile);
  Rows rows(g, std::min(kStrip, end - begin));
  dwconv::Strip strip = strip_of(work.finish);
  strip.row_step = g.dilation[0] * g.width * g.in_channels;
  strip.column_step = g.dilation[1] * g.in_channels;
  strip.y = work.y;
  strip.residual = work.added;
  strip.ldy = out_channels();
  strip.write_ahead = work.streams ? kWriteAhead : 0;
  strip.x = work.geometry.x;
  for (size_t from = begin; from < end; from += strip.m) {
    strip.m = rows.fill_windows(from, std::min(kStrip, end - from), alike);
    strip.rows = rows.pointers();
    strip.windows = rows.windows();
    if (work.tap_places != nullptr) strip.taps = work.tap_places + from * work.taps();
    strip.dests = rows.dests();
    dwconv_->run(strip);
    activate_rows(work.finish, strip.dests, strip.m, strip.y, strip.ldy, strip.channels);
    fill_rows(work, from, from + strip.m, 0, out_channels());
  }
  blank_share(work, first_tile, last_tile, 0, out_channels());
}

// What all strips have in common.
dwconv::Strip Conv::strip_of(const Finish& finish) const {
  dwconv::Strip strip{};
  strip.height = static_cast<size_t>(desc_.kernel[0]);
  strip.width = static_cast<size_t>(desc_.kernel[1]);
  strip.channels = out_channels();
  strip.zeros = zeros_.get();
  strip.weights = weights_.get();
  strip.bias = bias_.get();
  strip.lo = finish.lo;
  strip.hi = finish.hi;
  return strip;
}

}  // namespace semisparse
