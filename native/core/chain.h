// Convolutions that follow one another and are run as one: those of an inverted residual, or a
// network's first ones.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/bands.h"
#include "core/conv.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "semisparse.h"

namespace semisparse {

class Chain {
 public:
  // Arguments as in semisparse_chain_create. Throws Error.
  Chain(semisparse_chain_form form, const semisparse_chain_stage* stages, const IsaInfo& isa);

  const char* kernel_name() const { return kernel_name_.c_str(); }
  size_t in_channels() const { return first().in_channels(); }
  size_t out_channels() const { return last().out_channels(); }
  bool reads_nchw() const { return first().reads_nchw(); }

  // Throws Error where a stage's output would be empty or is not its source map's.
  Conv::Plane output_plane(int64_t height, int64_t width) const;

  void run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
           float* y, const Parallel& parallel) const;

 private:
  const Conv& first() const { return expand_ ? *expand_ : depthwise_; }
  const Conv& last() const { return project_ ? *project_ : depthwise_; }
  Stages stages() const {
    return {expand_ ? &*expand_ : nullptr, &depthwise_, project_ ? &*project_ : nullptr};
  }
  void keep_read();
  void list_taps();
  void compute(const float* x, int64_t batch, Conv::Plane in, const float* residual, float* y,
               const Parallel& parallel) const;
  std::shared_ptr<const Bands> bands(Conv::Plane in) const;
  void run_stages(const float* x, int64_t batch, Conv::Plane in, const float* residual, float* y,
                  const Parallel& parallel) const;

  std::optional<Conv> expand_;
  Conv depthwise_;
  std::optional<Conv> project_;
  std::string kernel_name_;
  // Where the expansion leaves masked positions alone: of each computed position of the depthwise
  // convolution, where its taps read, in floats from the expanded plane. Behind that are a row of
  // zeros, for those outside of it, and one of what a blank position holds.
  std::vector<uint32_t> taps_;
  // Of the plane that was run last; a network has but one.
  mutable std::mutex mutex_;
  mutable Conv::Plane bands_plane_{0, 0};
  mutable std::shared_ptr<const Bands> bands_;
};

}  // namespace semisparse
