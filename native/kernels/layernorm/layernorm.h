// Layer normalisation of the channels of some positions:
//
//     y[p * channels + c] = (x[p * channels + c] - mean) / sqrt(variance + epsilon) * scale[c]
//                           + shift[c]
//
// for every position p in `positions`, with mean and variance of its own channels. NaN and infinity
// make a whole position NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::layernorm {

struct Rows {
  const float* x;
  const uint32_t* positions;  // or null for [first, first + count)
  size_t first, count;
  size_t channels;  // >= 1
  const float* scale;
  const float* shift;
  float epsilon;
  float* y;
};

using Function = void (*)(const Rows& rows);

struct Kernel {
  const char* name;
  Function normalize;
};

#define SEMISPARSE_LAYERNORM(isa) void layernorm_##isa(const Rows& rows);
#include "kernels/layernorm/kernels.inc"
#undef SEMISPARSE_LAYERNORM

}  // namespace semisparse::layernorm
