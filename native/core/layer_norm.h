// Layer normalisation of the channels of a plane's positions, or of any rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/parallel.h"
#include "kernels/layernorm/layernorm.h"

namespace semisparse {

class LayerNorm {
 public:
  // scale, shift: [channels], for as long as the LayerNorm. mask: [positions] of one image, where
  // positions that are 0 are not computed and hold 0; or null. Throws Error.
  LayerNorm(size_t channels, const float* scale, const float* shift, float epsilon,
            const uint8_t* mask, size_t positions, const IsaInfo& isa);

  // x, y: [rows, channels]; with a mask the rows of whole images.
  void run(const float* x, size_t rows, float* y, const Parallel& parallel) const;

 private:
  bool masked() const { return !masked_.empty() || !computed_.empty(); }
  void run_image(const float* x, float* y, const Parallel& parallel) const;

  layernorm::Rows rows_;
  layernorm::Function normalize_;
  std::vector<uint32_t> computed_, masked_;  // positions; both empty without a mask
};

}  // namespace semisparse
