// What follows the linear part, for values that no GEMM kernel has in registers.
//
//     copy:       y[dest * ldy + j] = y[source * ldy + j]            for every pair, j < n
//     clamp:      y[j] = min(max(bias[j] + residual[j], lo), hi)     the row of a masked position
//     activate:   y[j] = activation(y[j])                            activations that are no clamp
//
// Residual may be null. NaN comes through all of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::epilogue {

// Output positions: a masked one, and the computed one that it copies.
struct Pair {
  uint32_t source, dest;
};

using Copy = void (*)(const Pair* pairs, size_t count, float* y, size_t ldy, size_t n);
using Clamp = void (*)(const float* bias, const float* residual, float* y, size_t n, float lo,
                       float hi);
using Activate = void (*)(float* y, size_t n, float a);

struct Kernel {
  const char* name;
  Copy copy;
  Clamp clamp;
  Activate leaky_relu;  // a is the slope for negative values
  Activate silu;
  Activate hard_swish;
  Activate sigmoid;
};

#define SEMISPARSE_EPILOGUE(isa)                                                           \
  void copy_##isa(const Pair* pairs, size_t count, float* y, size_t ldy, size_t n);        \
  void clamp_##isa(const float* bias, const float* residual, float* y, size_t n, float lo, \
                   float hi);                                                              \
  void leaky_relu_##isa(float* y, size_t n, float a);                                      \
  void silu_##isa(float* y, size_t n, float a);                                            \
  void hard_swish_##isa(float* y, size_t n, float a);                                      \
  void sigmoid_##isa(float* y, size_t n, float a);
#include "kernels/epilogue/kernels.inc"
#undef SEMISPARSE_EPILOGUE

}  // namespace semisparse::epilogue
