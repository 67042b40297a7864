// Depthwise convolution: every channel has its own filter of `taps` weights.
//
// One call computes `m` output positions for `channels` channels:
//
//     acc[i][c] = bias[c] + sum over t < taps of rows[i * taps + t][c] * weights[t * ldw + c]
//     y[d * ldy + c] = min(max(acc[i][c] + residual[d * ldy + c], lo), hi)      d = dests[i]
//
// Channels lie side by side in memory and are what the vectors run over.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::dwconv {

struct Strip {
  size_t m;                       // >= 1
  size_t taps;                    // >= 1
  size_t channels;                // >= 1
  const float* const* rows;       // [m][taps], or [m] where every tap lies at the same offset
  const std::ptrdiff_t* offsets;  // [taps], added to rows[i]; null: rows has a pointer per tap
  size_t columns;  // of the filter: offsets[t] = t / columns * offsets[columns] + t % columns *
                   // offsets[1]
  const float* weights;  // [taps][ldw], readable up to whole vectors
  size_t ldw;
  const float* bias;      // [channels], readable up to whole vectors
  const uint32_t* dests;  // [m]: output positions
  float* y;
  const float* residual;  // or null
  size_t ldy;
  size_t write_ahead;  // positions; those lines of y are fetched for writing meanwhile. 0: none
  float lo, hi;
};

using Function = void (*)(const Strip&);

struct Kernel {
  const char* name;
  Function run;
};

#define SEMISPARSE_DWCONV(isa) void dwconv_##isa(const Strip& strip);
#include "kernels/dwconv/kernels.inc"
#undef SEMISPARSE_DWCONV

}  // namespace semisparse::dwconv
