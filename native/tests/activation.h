// What a convolution's activation makes of a number, in double precision.
#pragma once

#include <cmath>

#include "kernels/epilogue/reference.h"
#include "semisparse.h"

namespace semisparse::test {

inline double activated(const semisparse_conv_desc& desc, double v) {
  switch (desc.activation) {
    case SEMISPARSE_RELU:
      return epilogue::reference_clamp(v, 0, INFINITY);
    case SEMISPARSE_CLIP:
      return epilogue::reference_clamp(v, desc.activation_a, desc.activation_b);
    case SEMISPARSE_LEAKY_RELU:
      return epilogue::reference_leaky_relu(v, desc.activation_a);
    case SEMISPARSE_SILU:
      return epilogue::reference_silu(v);
    case SEMISPARSE_HARD_SWISH:
      return epilogue::reference_hard_swish(v);
    case SEMISPARSE_SIGMOID:
      return epilogue::reference_sigmoid(v);
    case SEMISPARSE_HARD_SIGMOID:
      return epilogue::reference_hard_sigmoid(v);
    case SEMISPARSE_GELU:
      return epilogue::reference_gelu(v);
    default:
      return v;
  }
}

}  // namespace semisparse::test
