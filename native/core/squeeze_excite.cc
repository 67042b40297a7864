#include "core/squeeze_excite.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/c_enum.h"
#include "core/division.h"
#include "core/error.h"
#include "core/gate.h"
#include "core/scratch.h"
#include "core/select.h"

namespace semisparse {
namespace {

// Numbers whose sum is a task of its own, the same whoever does it, so that results do not depend
// on the number of threads.
constexpr size_t kSummedFloats = size_t{16} << 10;
constexpr size_t kMostSums = 32;  // of an image

const semisparse_chain_stage& checked(const semisparse_chain_stage& stage, const char* name) {
  if (stage.desc == nullptr || stage.weights == nullptr) {
    invalid(std::string(name) +
            " layer of squeeze and excitation lacks its desc or its weights; both must be given");
  }
  const bool fits = is_pointwise(*stage.desc) && stage.source == nullptr &&
                    number_of(stage.desc->input_layout) == SEMISPARSE_NHWC;
  if (!fits) {
    invalid(std::string(name) +
            " layer of squeeze and excitation is no dense pointwise convolution; its kernel, "
            "strides and group must be 1, its pads 0 and its source map NULL");
  }
  return stage;
}

}  // namespace

SqueezeExcite::SqueezeExcite(const semisparse_chain_stage& squeeze,
                             const semisparse_chain_stage& excite, bool scales, const IsaInfo& isa,
                             Conv::Weights after)
    : squeeze_(checked(squeeze, "the first"), isa, after),
      excite_(checked(excite, "the second"), isa, after),
      scales_(scales),
      isa_(&isa) {
  const bool fits = squeeze_.out_channels() == excite_.in_channels() &&
                    squeeze_.in_channels() == excite_.out_channels();
  if (fits) return;
  const auto both = [](const Conv& conv) {
    return std::to_string(conv.in_channels()) + " to " + std::to_string(conv.out_channels());
  };
  invalid("the layers of squeeze and excitation have " + both(squeeze_) + " and " + both(excite_) +
          " channels; the second must lead back from the first");
}

Conv::Plane SqueezeExcite::output_plane(int64_t height, int64_t width) const {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (height < 1 || width < 1 || height > kMost / width) {
    invalid("squeeze and excitation cannot have an input plane of " + std::to_string(height) + "x" +
            std::to_string(width) + "; it must have a position, and fewer than 2^31");
  }
  return scales_ ? Conv::Plane{height, width} : Conv::Plane{1, 1};
}

void SqueezeExcite::run(const float* x, int64_t batch, int64_t height, int64_t width,
                        const float* residual, float* y, const Parallel& parallel) const {
  if (residual != nullptr) {
    invalid("squeeze and excitation adds no residual; it must be NULL");
  }
  output_plane(height, width);
  const auto positions = static_cast<size_t>(height * width);
  if (batch < 0 || batch > std::numeric_limits<int32_t>::max() / (height * width)) {
    invalid("a batch of " + std::to_string(batch) + " with " + std::to_string(positions) +
            " positions each does not fit in 31 bits");
  }
  const auto images = static_cast<size_t>(batch);
  const size_t channels = in_channels();
  const ThreadScratch scratch(images * (2 * channels + squeeze_.out_channels()));
  float* means = scratch.data();
  float* squeezed = means + images * channels;
  float* gates = scales_ ? squeezed + images * squeeze_.out_channels() : y;
  mean(x, images, positions, means, parallel);
  squeeze_.run(means, batch, 1, 1, nullptr, squeezed, parallel);
  excite_.run(squeezed, batch, 1, 1, nullptr, gates, parallel);
  if (!scales_) return;
  for (size_t i = 0; i < images; ++i) {
    const size_t first = i * positions * channels;
    parallel.ranges(positions, grain_of(channels), [&](size_t begin, size_t end) {
      gate_rows(x + first, begin, end, channels, gates + i * channels, y + first);
    });
  }
}

void SqueezeExcite::mean(const float* x, size_t images, size_t positions, float* means,
                         const Parallel& parallel) const {
  const size_t channels = in_channels();
  const size_t sums =
      std::clamp<size_t>(positions * channels / kSummedFloats, 1, std::min(kMostSums, positions));
  const ThreadScratch scratch(images * sums * channels);
  float* summed = scratch.data();
  const pool::Function add = pool_kernel(isa_->isa).average;
  const auto add_rows = [&](const float* from, size_t rows, float scale, float* to) {
    std::vector<const float*> taps(rows);
    for (size_t i = 0; i < rows; ++i) taps[i] = from + i * channels;
    add({rows, taps.data(), channels, scale, to});
  };
  parallel.ranges(images * sums, 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const size_t share = i % sums;
      const size_t first = positions * share / sums;
      const size_t last = positions * (share + 1) / sums;
      add_rows(x + (i / sums * positions + first) * channels, last - first, 1.0f,
               summed + i * channels);
    }
  });
  const float scale = 1.0f / static_cast<float>(positions);
  for (size_t i = 0; i < images; ++i) {
    add_rows(summed + i * sums * channels, sums, scale, means + i * channels);
  }
}

}  // namespace semisparse
