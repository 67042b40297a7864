#include "core/winograd.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <string>
#include <utility>

#include "core/division.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/packing.h"
#include "core/scratch.h"
#include "core/winograd_weights.h"

namespace semisparse {

using winograd::Entry;

namespace {

constexpr size_t kTaps = 9;
constexpr size_t kMostOutputs = 16;  // of a tile
constexpr size_t kMostProducts = 36;
// The transforms take vectors of channels, and few channels have few multiplications to save.
constexpr int64_t kFewestChannels = 16;
// Costs are in multiply-adds for each pair of channels, measured on EPYC (Zen 4, AVX-512, 118
// GFLOP/s). Both transforms, for each product, times the channels of either side: with 64 channels
// 56x56 took 0.69 ms in tiles of 4 x 4 and 1.13 ms in tiles of 2 x 2, of which the products alone
// are 0.49 and 0.87 ms; with 128 channels 28x28 took 0.59 and 1.00 ms, the products as long.
constexpr double kTransforms = 10;
// A weight's way to the second-level cache at 24 GB/s, and how much of it, or of the products, the
// other of the two leaves uncovered. With weights from memory and 512 channels, 7x7 took 1.9 ms in
// tiles of 4 x 4 (38 MB of weights, 0.7 ms of products), 1.34 ms in tiles of 2 x 2 (17 MB, 1.2 ms),
// 0.66 ms in half as many of these, and 2.1 ms directly (9 MB).
constexpr double kStream = 10;
constexpr double kUncovered = 0.2;
// With few rows to spread them over, fetched lines would drive everything else from the first-level
// cache. Into the second, 7x7 with 512 channels took 1.41 instead of 1.93 ms (3 groups of rows),
// with half of the tiles 0.85 instead of 1.24 (2); 14x14 with 256 1.04 instead of 1.02 (5).
constexpr size_t kFewGroups = 3;
constexpr size_t kInputTiles = 4;  // fewest to transform that are worth a thread
// Every block streams the weights, which enough tiles must pay for: 28x28 with 512 channels took
// 13.5 ms in blocks of 16 tiles and 9.2 ms in blocks of 32.
constexpr size_t kTilesPerStream = 32;
// Yet a small plane is divided for the sake of threads, into blocks of at least so many tiles; that
// costs one thread up to 1%, and makes ResNet18 3% faster on two.
constexpr size_t kSmallestBlock = 8;

alignas(64) constexpr float kZeros[kWidestPanel] = {};

std::string setting() {
  const char* value = std::getenv("SEMISPARSE_WINOGRAD");
  return value == nullptr ? "" : value;
}

// Of so many multiply-adds with so many weights for each pair of channels.
double time_of(double multiply_adds, size_t weights, size_t pairs) {
  // What fits in the cache is there.
  const double bytes = static_cast<double>(weights * pairs * sizeof(float));
  const double missing = std::max(0.0, 1 - static_cast<double>(l2_cache_bytes()) / bytes);
  const double stream = kStream * static_cast<double>(weights) * missing;
  return std::max(multiply_adds, stream) + kUncovered * std::min(multiply_adds, stream);
}

}  // namespace

// The tiles of all images, in order.
struct Winograd::Tiling {
  size_t columns;  // of tiles, where dense
  size_t per_image;
};

// Tiles that are multiplied together with one panel.
struct Winograd::Block {
  size_t begin, end;
  const float* v;  // of tile begin
  size_t panel;
  size_t m_stride;  // floats from one product to the next
};

std::vector<size_t> Winograd::tile_sizes(const semisparse_conv_desc& d) {
  const bool suits = d.group == 1 && d.kernel[0] == 3 && d.kernel[1] == 3 && d.strides[0] == 1 &&
                     d.strides[1] == 1 && d.dilations[0] == 1 && d.dilations[1] == 1 &&
                     d.in_channels >= kFewestChannels && d.out_channels >= kFewestChannels;
  const std::string only = setting();
  if (!suits || only == "0") return {};
  if (only == "2") return {2};
  if (only == "4") return {4};
  if (only.empty()) return {4, 2};
  invalid("SEMISPARSE_WINOGRAD is '" + only + "'; set it to 0, 2 or 4, or not at all");
}

Winograd::Winograd(const semisparse_conv_desc& desc, const winograd::Kernel& kernel,
                   std::vector<Panel> panels, const float* weights, const Positions* positions)
    : in_channels_(static_cast<size_t>(desc.in_channels)),
      out_channels_(static_cast<size_t>(desc.out_channels)),
      kernel_(&kernel),
      outputs_(kernel.outputs),
      products_(winograd::products_of(kernel.outputs)),
      forced_(!setting().empty()),
      panels_(std::move(panels)),
      unpacked_(weights),
      masked_(positions != nullptr),
      // One line more than the products, or tiles of 256 channels would share their cache sets.
      v_stride_(products_ * in_channels_ + kLineFloats) {
  weight_begin_.push_back(0);
  for (const Panel& panel : panels_) {
    weight_begin_.push_back(weight_begin_.back() + products_ * in_channels_ * panel.kernel->nr);
    widest_ = std::max(widest_, panel.kernel->nr);
  }
  if (masked_) place_tiles(*positions);
}

void Winograd::place_tiles(const Positions& positions) {
  const auto tile_of = [&](uint32_t i) {
    const Positions::Place& place = positions.kept[i];
    return std::pair(place.y / outputs_, place.x / outputs_);
  };
  std::vector<uint32_t> order(positions.kept.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return tile_of(a) < tile_of(b); });
  for (const uint32_t i : order) {
    const Positions::Place& place = positions.kept[i];
    const auto y = static_cast<uint32_t>(place.y / outputs_ * outputs_);
    const auto x = static_cast<uint32_t>(place.x / outputs_ * outputs_);
    if (tiles_.empty() || tiles_.back().y != y || tiles_.back().x != x) {
      const auto begin = static_cast<uint32_t>(entries_.size());
      tiles_.push_back({y, x, begin, begin});
    }
    const auto slot = static_cast<uint32_t>((place.y - y) * outputs_ + (place.x - x));
    entries_.push_back({slot, place.position});
    for (size_t c = positions.copy_begin[i]; c < positions.copy_begin[i + 1]; ++c) {
      entries_.push_back({slot, positions.copies[c].dest});
    }
    tiles_.back().end = static_cast<uint32_t>(entries_.size());
  }
}

double Winograd::cost(size_t images, int64_t out_height, int64_t out_width) const {
  if (forced_) return 0;
  const size_t tiles = masked_ ? tiles_.size()
                               : ceil_div(static_cast<size_t>(out_height), outputs_) *
                                     ceil_div(static_cast<size_t>(out_width), outputs_);
  const double transforms = kTransforms * (1.0 / static_cast<double>(in_channels_) +
                                           1.0 / static_cast<double>(out_channels_));
  const auto products = static_cast<double>(images * tiles * products_);
  return time_of(products * (1 + transforms), products_, in_channels_ * out_channels_);
}

double Winograd::direct_cost(const semisparse_conv_desc& desc, size_t positions) {
  return time_of(static_cast<double>(positions * kTaps), kTaps,
                 static_cast<size_t>(desc.in_channels * desc.out_channels));
}

void Winograd::transform_weights() const {
  Buffer weights = make_lasting_buffer(weight_begin_.back());
  for (size_t p = 0; p < panels_.size(); ++p) {
    const Panel& panel = panels_[p];
    const size_t nr = panel.kernel->nr;
    const float* packed = panel.packed;
    Buffer for_now;
    if (packed == nullptr) {
      for_now = make_buffer(kTaps * in_channels_ * nr);
      pack_panel(unpacked_, in_channels_, kTaps, panel.first, panel.count, nr, for_now.get());
      packed = for_now.get();
    }
    transform_filters(outputs_, packed, in_channels_, nr, weights.get() + weight_begin_[p]);
  }
  weights_ = std::move(weights);
}

Winograd::Place Winograd::place(const Tiling& tiling, size_t tile) const {
  const size_t image = tile / tiling.per_image;
  const size_t index = tile % tiling.per_image;
  if (masked_) return {image, index, tiles_[index].y, tiles_[index].x};
  return {image, index, index / tiling.columns * outputs_, index % tiling.columns * outputs_};
}

void Winograd::transform_input(const Run& run, const Tiling& tiling, size_t tile, float* v) const {
  const Geometry& g = run.geometry;
  const Place at = place(tiling, tile);
  const float* plane = g.x + static_cast<int64_t>(at.image) * g.height * g.width * g.in_channels;
  const float* pixels[kMostProducts];
  const size_t side = winograd::inputs_of(outputs_);
  for (size_t k = 0; k < products_; ++k) {
    const int64_t row = static_cast<int64_t>(at.y + k / side) - g.pad_top;
    const int64_t column = static_cast<int64_t>(at.x + k % side) - g.pad_left;
    const bool inside = row >= 0 && row < g.height && column >= 0 && column < g.width;
    pixels[k] = inside ? plane + (row * g.width + column) * g.in_channels : g.zeros;
  }
  kernel_->input({pixels, in_channels_, v});
}

void Winograd::multiply(const Block& block, float* m) const {
  const Panel& panel = panels_[block.panel];
  const float* weights = weights_.get() + weight_begin_[block.panel];
  const size_t nr = panel.kernel->nr;
  const size_t count = block.end - block.begin;
  const size_t groups = ceil_div(count, panel.kernel->mr);
  SmallArray<const float*, 128> rows(count);
  for (size_t i = 0; i < count; ++i) rows[i] = block.v + i * v_stride_;
  igemm::Tile tile{};
  tile.m = count;
  tile.taps = 1;
  tile.channels = in_channels_;
  tile.rows = rows.data();
  tile.init = kZeros;
  // The next product's weights are fetched meanwhile, spread over all rows.
  const size_t turns = std::max<size_t>(1, in_channels_ / 4);
  tile.prefetch_lines = ceil_div(in_channels_ * nr / kLineFloats, groups * turns);
  tile.prefetch_far = groups <= kFewGroups;
  for (size_t k = 0; k < products_; ++k) {
    tile.row_offset = k * in_channels_;
    tile.weights = weights + k * in_channels_ * nr;
    tile.prefetch = tile.weights + in_channels_ * nr;
    tile.park = m + k * block.m_stride;
    panel.kernel->run(tile);
  }
}

void Winograd::transform_output(const Run& run, const Tiling& tiling, const Block& block,
                                const float* m, const OnDone& done) const {
  const auto height = static_cast<size_t>(run.geometry.out_height);
  const auto width = static_cast<size_t>(run.geometry.out_width);
  const Panel& panel = panels_[block.panel];
  winograd::Output output{};
  output.stride = block.m_stride;
  output.bias = run.bias + panel.first;
  output.ldy = out_channels_;
  output.n = panel.count;
  output.lo = run.lo;
  output.hi = run.hi;
  std::array<Entry, kMostOutputs> all;
  for (size_t i = block.begin; i < block.end; ++i) {
    const Place at = place(tiling, i);
    if (masked_) {
      const Tile& tile = tiles_[at.index];
      output.entries = entries_.data() + tile.begin;
      output.count = tile.end - tile.begin;
    } else {
      output.entries = all.data();
      output.count = 0;
      for (size_t y = at.y; y < std::min(height, at.y + outputs_); ++y) {
        for (size_t x = at.x; x < std::min(width, at.x + outputs_); ++x) {
          all[output.count++] = {static_cast<uint32_t>((y - at.y) * outputs_ + (x - at.x)),
                                 static_cast<uint32_t>(y * width + x)};
        }
      }
    }
    const size_t first = at.image * height * width * out_channels_ + panel.first;
    output.m = m + (i - block.begin) * panel.kernel->nr;
    output.y = run.y + first;
    output.residual = run.residual == nullptr ? nullptr : run.residual + first;
    const bool finite = kernel_->output(output);
    done({at.image, at.y, at.x, outputs_, block.panel, output.entries, output.count, finite});
  }
}

void Winograd::run(const Run& run, const Parallel& parallel, const OnDone& done) const {
  std::call_once(once_, [this] { transform_weights(); });
  const auto height = static_cast<size_t>(run.geometry.out_height);
  const auto width = static_cast<size_t>(run.geometry.out_width);
  Tiling tiling{};
  tiling.columns = ceil_div(width, outputs_);
  tiling.per_image = masked_ ? tiles_.size() : ceil_div(height, outputs_) * tiling.columns;
  const size_t tiles = run.images * tiling.per_image;

  // A block's transformed inputs and products fill half of the cache. Blocks of half to seven times
  // this many tiles took from 1.00 to 1.07 times as long.
  const size_t tile_bytes = products_ * (in_channels_ + widest_) * sizeof(float);
  const size_t most = std::max(kTilesPerStream, l2_cache_bytes() / 2 / tile_bytes);
  const size_t blocks =
      std::max(ceil_div(tiles, most),
               std::min(ceil_div(kTasksWanted, panels_.size()), tiles / kSmallestBlock));
  // So many are transformed before they are multiplied, as all threads need for their share.
  const size_t at_once = ceil_div(kTasksWanted, panels_.size());
  const ThreadScratch scratch(std::min(tiles, at_once * ceil_div(tiles, blocks)) * v_stride_);
  float* v = scratch.data();

  for (size_t first = 0; first < blocks; first += at_once) {
    const size_t last = std::min(blocks, first + at_once);
    const size_t begin = tiles * first / blocks;
    const size_t end = tiles * last / blocks;
    parallel.ranges(end - begin, kInputTiles, [&](size_t from, size_t to) {
      for (size_t i = from; i < to; ++i) {
        transform_input(run, tiling, begin + i, v + i * v_stride_);
      }
    });
    parallel((last - first) * panels_.size(), [&](size_t task) {
      const size_t index = first + task / panels_.size();
      Block block{};
      block.begin = tiles * index / blocks;
      block.end = tiles * (index + 1) / blocks;
      block.v = v + (block.begin - begin) * v_stride_;
      block.panel = task % panels_.size();
      // Again one line more, for the sake of the cache sets.
      block.m_stride = (block.end - block.begin) * panels_[block.panel].kernel->nr + kLineFloats;
      const ThreadScratch m(products_ * block.m_stride);
      multiply(block, m.data());
      transform_output(run, tiling, block, m.data(), done);
    });
  }
}

}  // namespace semisparse
