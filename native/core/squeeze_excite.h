// Squeeze and excitation (arXiv 1709.01507): a gate for each channel from the mean of its plane.
#pragma once

#include "core/conv.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "semisparse.h"

namespace semisparse {

class SqueezeExcite {
 public:
  // Arguments as in semisparse_squeeze_excite_create. Throws Error.
  SqueezeExcite(const semisparse_chain_stage& squeeze, const semisparse_chain_stage& excite,
                bool scales, const IsaInfo& isa, Conv::Weights after = Conv::Weights::kGone);

  size_t in_channels() const { return squeeze_.in_channels(); }
  size_t out_channels() const { return excite_.out_channels(); }
  bool reads_nchw() const { return false; }

  // That of the input where it scales, else a single position.
  Conv::Plane output_plane(int64_t height, int64_t width) const;

  // There is no residual; the argument is what convolutions and chains have.
  void run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
           float* y, const Parallel& parallel) const;

 private:
  void mean(const float* x, size_t images, size_t positions, float* means,
            const Parallel& parallel) const;

  Conv squeeze_, excite_;
  bool scales_;
  const IsaInfo* isa_;
};

}  // namespace semisparse
