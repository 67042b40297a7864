// What follows the linear part, for values that no GEMM kernel has in registers.
//
//     spread:     y[d * ldy + j] = min(max(linear[s * ldl + j] + residual[d * ldy + j], lo), hi)
//                 for every pair (s, d) and j < n
//     mean:       the same of (1 - w) * linear[a * ldl + j] + w * linear[b * ldl + j]
//                 for every (a, b, d, w)
//     activate:   y[d * ldy + j] = activation(y[d * ldy + j])        activations that are no clamp
//                 for every place d and j < n
//
// NaN comes through all of them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::epilogue {

// A row that holds a linear part, and an output position that it goes to.
struct Pair {
  uint32_t source, dest;
};

// Two rows that hold linear parts, the weight of the second, and where their mean goes.
struct Mean {
  uint32_t first, second, dest;
  float weight;
};

template <typename Entry>
struct Rows {
  const Entry* entries;
  size_t count;
  const float* linear;  // may be y, where no entry reads the dest of one before it
  size_t ldl;
  const float* residual;  // or null
  float* y;
  size_t ldy;
  size_t n;
  float lo, hi;
};

using Spread = Rows<Pair>;
using MeanRows = Rows<Mean>;

// Output positions d = dests[i * step], i < count: by themselves, or in a list of entries.
struct Places {
  const uint32_t* dests;
  size_t step, count;
  float* y;
  size_t ldy;
  size_t n;
};

using SpreadFunction = void (*)(const Spread& spread);
using MeanFunction = void (*)(const MeanRows& rows);
using Activate = void (*)(const Places& places, float a);

struct Kernel {
  const char* name;
  SpreadFunction spread;
  MeanFunction mean;
  Activate leaky_relu;  // a is the slope for negative values
  Activate silu;
  Activate hard_swish;
  Activate sigmoid;
  Activate hard_sigmoid;
  Activate gelu;
};

#define SEMISPARSE_EPILOGUE(isa)                          \
  void spread_##isa(const Spread& spread);                \
  void mean_##isa(const MeanRows& rows);                  \
  void leaky_relu_##isa(const Places& places, float a);   \
  void silu_##isa(const Places& places, float a);         \
  void hard_swish_##isa(const Places& places, float a);   \
  void sigmoid_##isa(const Places& places, float a);      \
  void hard_sigmoid_##isa(const Places& places, float a); \
  void gelu_##isa(const Places& places, float a);
#include "kernels/epilogue/kernels.inc"
#undef SEMISPARSE_EPILOGUE

}  // namespace semisparse::epilogue
