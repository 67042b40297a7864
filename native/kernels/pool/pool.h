// Pooling of one output position over all its channels:
//
//     y[c] = max or sum over t < taps of rows[t][c], times scale
//     y[c] = sqrt(sum over t < taps of rows[t][c]^2) * scale          norm
//
// `rows` holds only the taps that lie inside the plane; `scale` is 1 / count for an average, else
// 1. NaN wins every maximum, as in torch.
#pragma once

#include <cstddef>

namespace semisparse::pool {

struct Window {
  size_t taps;               // >= 1
  const float* const* rows;  // [taps]
  size_t channels;
  float scale;
  float* y;
};

using Function = void (*)(const Window&);

struct Kernel {
  const char* name;
  Function max;
  Function average;
  Function norm;
};

#define SEMISPARSE_POOL(isa)                     \
  void pool_max_##isa(const Window& window);     \
  void pool_average_##isa(const Window& window); \
  void pool_norm_##isa(const Window& window);
#include "kernels/pool/kernels.inc"
#undef SEMISPARSE_POOL

}  // namespace semisparse::pool
