// From a run to its tasks.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "core/conv_work.h"
#include "core/error.h"
#include "core/gate.h"
#include "core/scratch.h"

namespace semisparse {
namespace {

// Fewest floating-point operations that are worth a thread: two to eight microseconds, where
// another one has begun after less than one.
constexpr size_t kGrainFlops = size_t{256} << 10;
constexpr size_t kDepthwiseFlop = 4;  // takes so many times as long as any other
// Whoever computes a group streams it from beyond the cache once, which enough rows must pay for.
constexpr size_t kRowsPerStream = 96;

using Four = float __attribute__((vector_size(16)));

Four load_four(const float* from) {
  Four four;
  std::memcpy(&four, from, sizeof(four));
  return four;
}

// Of three channels, the usual number; returns how many pixels it did. One float after the other
// takes 41 us for 224x224, and this 15, of MobileNetV2's first convolution of 272 (EPYC, Zen 4).
int64_t interleave_three(const float* from, int64_t plane, int64_t width, float* to) {
  int64_t x = 0;
  for (; x + 4 <= width; x += 4) {
    const Four r = load_four(from + x);
    const Four g = load_four(from + plane + x);
    const Four b = load_four(from + 2 * plane + x);
    const Four rg01 = __builtin_shufflevector(r, g, 0, 4, 1, 5);
    const Four rg23 = __builtin_shufflevector(r, g, 2, 6, 3, 7);
    const Four br01 = __builtin_shufflevector(b, r, 0, 5, 0, 5);
    const Four gb12 = __builtin_shufflevector(g, b, 1, 5, 2, 6);
    const Four three[] = {__builtin_shufflevector(rg01, br01, 0, 1, 4, 5),
                          __builtin_shufflevector(gb12, rg23, 0, 1, 4, 5),
                          __builtin_shufflevector(b, rg23, 2, 6, 7, 3)};
    std::memcpy(to + 3 * x, three, sizeof(three));
  }
  return x;
}

// A row of a plane from a channel after the other to all channels of a pixel after those of the
// other.
void interleave(const float* from, int64_t plane, int64_t channels, int64_t width, float* to) {
  const int64_t done = channels == 3 ? interleave_three(from, plane, width, to) : 0;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t x = done; x < width; ++x) to[x * channels + c] = from[c * plane + x];
  }
}

// Each number `times` times in a row.
void repeat(const float* from, size_t n, size_t times, float* to) {
  size_t i = 0;
  if (times == 2) {
    for (; i + 4 <= n; i += 4) {
      const Four four = load_four(from + i);
      const Four two[] = {__builtin_shufflevector(four, four, 0, 0, 1, 1),
                          __builtin_shufflevector(four, four, 2, 2, 3, 3)};
      std::memcpy(to + 2 * i, two, sizeof(two));
    }
  }
  for (; i < n; ++i) std::fill_n(to + i * times, times, from[i]);
}

void check_batch(int64_t batch, Conv::Plane out) {
  const int64_t plane = out.height * out.width;
  if (batch < 0 || (batch > 0 && plane > std::numeric_limits<uint32_t>::max() / batch)) {
    invalid("a batch of " + std::to_string(batch) + " with " + std::to_string(plane) +
            " positions each does not fit in 32 bits");
  }
}

}  // namespace

void Conv::run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
               float* y, const Parallel& parallel, const float* gate, const uint32_t* taps) const {
  if (gate != nullptr && !takes_gate()) {
    invalid(
        "a gate is for convolutions in NHWC with kernel 1, group 1 and no padding, which is no "
        "depthwise one; multiply the input by it beforehand");
  }
  if (!means_) return compute(x, batch, height, width, residual, y, parallel, gate, taps);
  check_batch(batch, output_plane(height, width));
  complete_means(static_cast<size_t>(batch), residual, y, parallel, [&](float* linear) {
    compute(x, batch, height, width, nullptr, linear, parallel, gate, taps);
  });
}

void Conv::compute(const float* x, int64_t batch, int64_t height, int64_t width,
                   const float* residual, float* y, const Parallel& parallel, const float* gate,
                   const uint32_t* taps) const {
  const Plane out = output_plane(height, width);
  const int64_t plane = out.height * out.width;
  check_batch(batch, out);
  if (batch == 0) return;
  if (gate != nullptr && batch > 1) {
    // Every image has a gate of its own.
    const auto ins = static_cast<size_t>(height * width) * in_channels();
    const auto outs = static_cast<size_t>(plane) * out_channels();
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      compute(x + i * ins, 1, height, width, residual == nullptr ? nullptr : residual + i * outs,
              y + i * outs, parallel, gate + i * in_channels());
    }
    return;
  }

  Work work{};
  Geometry& g = work.geometry;
  g.x = x;
  g.height = height;
  g.width = width;
  g.in_channels = desc_.in_channels;
  g.out_height = out.height;
  g.out_width = out.width;
  g.stride_y = desc_.strides[0];
  g.stride_x = desc_.strides[1];
  g.pad_top = desc_.pads[0];
  g.pad_left = desc_.pads[1];
  g.kernel = {desc_.kernel[0], desc_.kernel[1]};
  g.dilation = {desc_.dilations[0], desc_.dilations[1]};
  g.zeros = zeros_.get();
  g.positions = positions_ ? &*positions_ : nullptr;
  g.rows_per_image = positions_ ? positions_->kept.size() : static_cast<size_t>(plane);
  work.residual = residual;
  work.y = y;
  work.tap_places = taps;
  work.images = static_cast<size_t>(batch);
  work.rows = work.images * g.rows_per_image;
  // 112x112 with 32 channels, depthwise: 0.29 to 0.235 ms; where the output fits, 3% slower.
  work.streams =
      work.images * static_cast<size_t>(plane) * out_channels() * sizeof(float) > l2_cache_bytes();
  const bool linear = residual != nullptr && copies();
  work.added = linear ? nullptr : residual;
  work.finish = linear ? kLinear : finish_;

  std::optional<ThreadScratch> scratch;
  if (runs_along_rows() || reads_nchw()) {
    const Plane padded = padded_plane({height, width});
    scratch.emplace(work.images * padded.positions() * in_channels());
    pad_input(x, batch, {height, width}, scratch->data(), parallel);
    g.x = scratch->data();
    g.height = padded.height;
    g.width = padded.width;
    g.pad_top = g.pad_left = 0;
  }
  std::optional<ThreadScratch> repeated;
  if (repeats_inputs()) {
    const auto pixels = static_cast<size_t>(batch * g.height * g.width);
    repeated.emplace(pixels * out_channels());
    repeat_inputs(g.x, pixels, repeated->data(), parallel);
    g.x = repeated->data();
    g.in_channels = desc_.out_channels;
  }
  work.fetches_x = desc_.kernel[0] * desc_.kernel[1] == 1 && in_channels() > out_channels() &&
                   static_cast<size_t>(batch * height * width) * in_channels() * sizeof(float) >
                       l2_cache_bytes();
  for (int64_t ky = 0; ky < desc_.kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < tap_columns(); ++kx) {
      const int64_t dy = ky * desc_.dilations[0];
      const int64_t dx = kx * desc_.dilations[1];
      g.taps.push_back({dy, dx});
      g.offsets.push_back((dy * g.width + dx) * g.in_channels);
    }
  }
  work.channels = tap_channels();

  if (const Winograd* winograd = fastest_winograd(work.images, out)) {
    run_winograd(*winograd, work, parallel);
  } else {
    divide(work);
    if (dwconv_ == nullptr) pack_panels(staying_);
    work.weights = weights_.get();
    std::optional<ThreadScratch> gated;
    if (gate != nullptr && work.rows >= out_channels()) {
      gated.emplace(packed_floats_);
      gate_weights(gate, gated->data(), parallel);
      work.weights = gated->data();
    } else if (gate != nullptr) {
      const auto pixels = static_cast<size_t>(height * width);
      gated.emplace(pixels * in_channels());
      gate_inputs(x, pixels, gate, gated->data(), parallel);
      g.x = gated->data();
    }
    parallel.ranges(work.units(), work.grain, [&](size_t begin, size_t end) {
      begin *= work.unit;
      end *= work.unit;
      dwconv_ != nullptr ? dwconv_rows(work, begin, end) : igemm_range(work, begin, end);
    });
    if (!work.by_group || !copies()) return;
    // By whole rows: what a group has of them lies mostly a power of two apart, so in few sets of
    // the caches. Filled by the tasks, 1024 and 2048 channels with a residual took 2 to 6% longer
    // at 14x14, and 2% at 7x7 (EPYC, Zen 4, AVX-512).
    parallel.ranges(work.rows, grain_of(out_channels()), [&](size_t begin, size_t end) {
      fill_rows(work, begin, end, 0, out_channels());
    });
  }
}

// The weights of a pointwise convolution times the gates of their inputs: fewer numbers than the
// inputs themselves where there are more positions than output channels. In the blocks of
// MobileNetV3 it takes too little to be seen, where multiplying the rows of one tile after the
// other took a fifth of the convolution (EPYC, Zen 4).
void Conv::gate_weights(const float* gate, float* gated, const Parallel& parallel) const {
  parallel.ranges(in_channels(), grain_of(out_channels()), [&](size_t begin, size_t end) {
    for (const Panel& panel : panels_) {
      const size_t nr = panel.kernel->nr;
      for (size_t c = begin; c < end; ++c) {
        const float* from = weights_.get() + panel.weights + c * nr;
        float* to = gated + panel.weights + c * nr;
        for (size_t j = 0; j < nr; ++j) to[j] = from[j] * gate[c];
      }
    }
  });
}

void Conv::gate_inputs(const float* x, size_t pixels, const float* gate, float* gated,
                       const Parallel& parallel) const {
  parallel.ranges(pixels, grain_of(in_channels()), [&](size_t begin, size_t end) {
    gate_rows(x, begin, end, in_channels(), gate, gated);
  });
}

void Conv::repeat_inputs(const float* x, size_t pixels, float* repeated,
                         const Parallel& parallel) const {
  const size_t times = out_channels() / in_channels();
  parallel.ranges(pixels, grain_of(out_channels()), [&](size_t begin, size_t end) {
    const size_t first = begin * in_channels();
    repeat(x + first, (end - begin) * in_channels(), times, repeated + first * times);
  });
}

Conv::Plane Conv::padded_plane(Plane in) const {
  return {in.height + desc_.pads[0] + desc_.pads[2], in.width + desc_.pads[1] + desc_.pads[3]};
}

void Conv::pad_input(const float* x, int64_t batch, Plane in, float* padded,
                     const Parallel& parallel) const {
  const auto [height, width] = in;
  const auto row_floats = static_cast<size_t>(width * desc_.in_channels);
  const int64_t plane = height * width;
  const auto left = static_cast<size_t>(desc_.pads[1] * desc_.in_channels);
  const auto right = static_cast<size_t>(desc_.pads[3] * desc_.in_channels);
  const size_t line = left + row_floats + right;
  const int64_t padded_height = padded_plane(in).height;
  const int64_t lines = batch * padded_height;
  parallel.ranges(static_cast<size_t>(lines), grain_of(line), [&](size_t begin, size_t end) {
    for (auto i = static_cast<int64_t>(begin); i < static_cast<int64_t>(end); ++i) {
      float* to = padded + static_cast<size_t>(i) * line;
      const int64_t row = i % padded_height - desc_.pads[0];
      if (row < 0 || row >= height) {
        std::fill_n(to, line, 0.0f);
        continue;
      }
      const float* image = x + i / padded_height * plane * desc_.in_channels;
      std::fill_n(to, left, 0.0f);
      if (reads_nchw()) {
        interleave(image + row * width, plane, desc_.in_channels, width, to + left);
      } else {
        std::memcpy(to + left, image + row * width * desc_.in_channels, row_floats * sizeof(float));
      }
      std::fill_n(to + left + row_floats, right, 0.0f);
    }
  });
}

void Conv::run_winograd(const Winograd& winograd, const Work& work,
                        const Parallel& parallel) const {
  const Winograd::Run run{work.geometry, work.images, bias_.get(), work.residual,
                          work.y,        finish_.lo,  finish_.hi};
  winograd.run(run, parallel, [&](const Winograd::Done& done) { finish_winograd(work, done); });
  if (!positions_ || positions_->blank.empty()) return;
  const size_t blanks = work.images * positions_->blank.size();
  parallel.ranges(blanks, grain_of(out_channels()),
                  [&](size_t begin, size_t end) { blank(work, begin, end, 0, out_channels()); });
}

void Conv::finish_winograd(const Work& work, const Winograd::Done& done) const {
  if (!done.finite) {
    recompute(work, done);
  } else if (finish_.activate != nullptr && done.count != 0) {
    const Geometry& g = work.geometry;
    const Panel& panel = panels_[done.panel];
    const size_t first = done.image * static_cast<size_t>(g.out_height * g.out_width);
    constexpr size_t kStep = sizeof(winograd::Entry) / sizeof(uint32_t);
    finish_.activate({&done.entries->position, kStep, done.count,
                      work.y + first * out_channels() + panel.first, out_channels(), panel.count},
                     desc_.activation_a);
  }
}

// Winograd's transforms spread what is infinite or not a number over a whole tile, so such a tile
// is computed directly instead.
void Conv::recompute(const Work& work, const Winograd::Done& done) const {
  pack_panels(staying_);
  Work direct = work;
  direct.weights = weights_.get();
  const Geometry& g = work.geometry;
  const auto height = static_cast<size_t>(g.out_height);
  const auto width = static_cast<size_t>(g.out_width);
  const Panel& panel = panels_[done.panel];
  // The computed positions before `position` of the plane.
  const auto rows_before = [&](size_t position) {
    if (!positions_) return position;
    const auto& kept = positions_->kept;
    const auto at =
        std::lower_bound(kept.begin(), kept.end(), position,
                         [](const Positions::Place& p, size_t q) { return p.position < q; });
    return static_cast<size_t>(at - kept.begin());
  };
  const size_t image = done.image * g.rows_per_image;
  for (size_t y = done.y; y < std::min(height, done.y + done.side); ++y) {
    const size_t last = std::min(width, done.x + done.side);
    const size_t begin = image + rows_before(y * width + done.x);
    const size_t end = image + rows_before(y * width + last);
    igemm_tiles(direct, begin, end, done.panel, done.panel + 1);
    fill_rows(work, begin, end, panel.first, panel.count);
  }
}

void Conv::divide(Work& work) const {
  const size_t depth = work.taps() * work.channels;  // K of one group
  const size_t weight_bytes = depth * out_channels() * sizeof(float);
  const size_t groups = dwconv_ != nullptr ? 1 : panel_groups();
  // Weights that stay in the second-level cache beside the rows are best met once per row, so that
  // each row is read once; larger ones group by group, so that a group stays there over all rows.
  work.by_group = groups > 1 && weight_bytes > l2_cache_bytes() / 4;
  const size_t columns = work.by_group ? ceil_div(out_channels(), groups) : out_channels();
  const size_t row_flops = 2 * (dwconv_ != nullptr ? work.taps() : depth) * columns;
  const size_t mr = std::max<size_t>(1, mr_);
  work.tiles = std::max<size_t>(1, ceil_div(work.rows, mr));
  const size_t tile_flops = mr * row_flops * (dwconv_ != nullptr ? kDepthwiseFlop : 1);
  work.grain = ceil_div(kGrainFlops, tile_flops);
  work.block_depth = depth;
  if (work.by_group && depth * columns * sizeof(float) > l2_cache_bytes() / 2) {
    work.block_depth = std::max<size_t>(1, l2_cache_bytes() / 4 / (columns * sizeof(float)));
    work.grain = std::max(work.grain, ceil_div(kRowsPerStream, mr));
  }
  work.groups = work.by_group ? groups : 1;
  // Where there are enough rows, threads share these rather than the groups, since they find the
  // ones that they have computed themselves in their caches.
  work.parts = work.by_group ? std::clamp<size_t>(work.rows / kRowsPerStream, 1, work.tiles) : 1;
  const bool whole = work.parts == 1 && work.tiles < 2 * work.grain;
  work.unit = whole ? work.tiles : 1;
  work.grain = ceil_div(work.grain, work.unit);
}

}  // namespace semisparse
