#include "core/pool.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/c_enum.h"
#include "core/error.h"
#include "core/select.h"

namespace semisparse {
namespace {

// The window of one output index along one axis.
struct Span {
  int64_t first, taps;  // of the taps inside the plane
  int64_t counted;      // taps that an average with padding counts
};

Span span(const semisparse_pool_desc& d, int axis, int64_t size, int64_t out) {
  const int64_t start = out * d.strides[axis] - d.pads[axis];
  const int64_t dilation = d.dilations[axis];
  // A window that ceil_mode lets hang over counts no place beyond the padding.
  const int64_t beyond = size + d.pads[axis + 2];
  Span s{start, 0, 0};
  for (int64_t k = 0; k < d.kernel[axis]; ++k) {
    const int64_t at = start + k * dilation;
    if (at < beyond) ++s.counted;
    if (at < 0 || at >= size) continue;
    if (s.taps++ == 0) s.first = at;
  }
  return s;
}

}  // namespace

void pool_output_size(const semisparse_pool_desc& d, int64_t height, int64_t width,
                      int64_t* out_height, int64_t* out_width) {
  const int64_t sizes[2] = {height, width};
  int64_t* outs[2] = {out_height, out_width};
  const int kind = number_of(d.kind);
  if (kind < SEMISPARSE_MAX_POOL || kind > SEMISPARSE_L2_POOL) {
    invalid("pool kind " + std::to_string(kind) +
            " is unknown; it must be one of semisparse_pool_kind");
  }
  for (int i = 0; i < 2; ++i) {
    const int64_t limit = int64_t{1} << 24;
    if (sizes[i] < 1 || d.kernel[i] < 1 || d.strides[i] < 1 || d.dilations[i] < 1 ||
        d.pads[i] < 0 || d.pads[i + 2] < 0 || sizes[i] > limit || d.kernel[i] > limit ||
        d.strides[i] > limit || d.dilations[i] > limit || d.pads[i] > limit ||
        d.pads[i + 2] > limit) {
      invalid("a pool of size " + std::to_string(d.kernel[i]) + ", stride " +
              std::to_string(d.strides[i]) + ", dilation " + std::to_string(d.dilations[i]) +
              " and padding " + std::to_string(d.pads[i]) + ", " + std::to_string(d.pads[i + 2]) +
              " over " + std::to_string(sizes[i]) + " positions is not possible");
    }
    const int64_t reach = (d.kernel[i] - 1) * d.dilations[i] + 1;
    const int64_t room = sizes[i] + d.pads[i] + d.pads[i + 2] - reach;
    // As torch: padding of a whole window would make windows that see nothing.
    if (room < 0 || d.pads[i] >= reach || d.pads[i + 2] >= reach) {
      invalid("a pool window of " + std::to_string(reach) + " with padding " +
              std::to_string(d.pads[i]) + ", " + std::to_string(d.pads[i + 2]) +
              " does not fit a side of " + std::to_string(sizes[i]));
    }
    int64_t out = room / d.strides[i] + 1;
    if (d.ceil_mode != 0 && room % d.strides[i] != 0 && out * d.strides[i] < sizes[i] + d.pads[i]) {
      ++out;  // but no window may start beyond the input
    }
    *outs[i] = out;
  }
}

void run_pool(const semisparse_pool_desc& desc, const float* x, int64_t batch, int64_t height,
              int64_t width, int64_t channels, float* y, const IsaInfo& isa,
              const Parallel& parallel) {
  int64_t out_height = 0;
  int64_t out_width = 0;
  pool_output_size(desc, height, width, &out_height, &out_width);
  if (batch < 0 || channels < 0) {
    invalid("a pool of " + std::to_string(batch) + " images with " + std::to_string(channels) +
            " channels is not possible");
  }
  const bool average = desc.kind == SEMISPARSE_AVERAGE_POOL;
  const pool::Kernel& kernels = pool_kernel(isa.isa);
  const pool::Function kernel = desc.kind == SEMISPARSE_MAX_POOL ? kernels.max
                                : average                        ? kernels.average
                                                                 : kernels.norm;

  std::vector<Span> across;
  for (int64_t ox = 0; ox < out_width; ++ox) across.push_back(span(desc, 1, width, ox));

  // By output rows; where there is but one position (a global pool), channels are cut too.
  constexpr int64_t kChannels = 256;
  const int64_t rows = batch * out_height;
  const int64_t slices = out_height * out_width == 1 ? (channels + kChannels - 1) / kChannels : 1;
  const int64_t slice_channels = slices == 1 ? channels : kChannels;
  const auto pool_row = [&](int64_t row, int64_t channel, std::vector<const float*>& taps) {
    const Span down = span(desc, 0, height, row % out_height);
    const float* image = x + row / out_height * height * width * channels;
    for (int64_t ox = 0; ox < out_width; ++ox) {
      taps.clear();
      for (int64_t i = 0; i < down.taps; ++i) {
        for (int64_t j = 0; j < across[static_cast<size_t>(ox)].taps; ++j) {
          const int64_t at = (down.first + i * desc.dilations[0]) * width +
                             across[static_cast<size_t>(ox)].first + j * desc.dilations[1];
          taps.push_back(image + at * channels + channel);
        }
      }
      const int64_t counted = desc.count_include_pad != 0
                                  ? down.counted * across[static_cast<size_t>(ox)].counted
                                  : static_cast<int64_t>(taps.size());
      pool::Window window;
      window.taps = taps.size();
      window.rows = taps.data();
      window.channels = static_cast<size_t>(std::min(slice_channels, channels - channel));
      window.scale = average ? 1.0f / static_cast<float>(counted) : 1.0f;
      window.y = y + (row * out_width + ox) * channels + channel;
      kernel(window);
    }
  };
  parallel.ranges(static_cast<size_t>(rows * slices), 1, [&](size_t begin, size_t end) {
    std::vector<const float*> taps;
    taps.reserve(static_cast<size_t>(desc.kernel[0] * desc.kernel[1]));
    for (auto i = static_cast<int64_t>(begin); i < static_cast<int64_t>(end); ++i) {
      pool_row(i / slices, i % slices * slice_channels, taps);
    }
  });
}

}  // namespace semisparse
