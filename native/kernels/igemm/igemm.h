// Indirect GEMM: the im2col matrix is never built; its rows are reached through pointers.
//
// One call computes `m` output positions (rows), `mr` and fewer at a time, times one panel of `nr`
// output channels:
//
//     acc[i][j] = init[i * init_stride + j]
//               + sum over t < taps, c < channels of
//                     rows[t * m + i][row_offset + c] * weights[(t * channels + c) * nr + j]
//
// A tap is any run of `channels` inputs that lie side by side: one filter position with all its
// channels, or a whole filter row where the input has been padded. A position that the mask drops
// is simply not among the rows, so sparsity costs the kernel nothing.
//
// Then, if `park` is given, the accumulators are stored there as they are, [m][nr], for a later
// call to go on from (`init`) or for somebody else to finish. Otherwise
//
//     y[d * ldy + j] = min(max(acc[i][j] + residual[d * ldy + j], lo), hi)
//
// for d = dests[i] and j < n. NaN comes through the clamp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::igemm {

struct Tile {
  size_t m;                       // >= 1
  size_t taps;                    // >= 1
  size_t channels;                // >= 1
  const float* const* rows;       // [taps][m], or [m] where every tap lies at the same offset
  const std::ptrdiff_t* offsets;  // [taps], added to rows[i]; null: rows has a pointer per tap
  size_t row_offset;
  const float* prefetch;  // what will be wanted next: so many of its cache lines are fetched every
  size_t prefetch_lines;  // four channels of mr rows
  bool prefetch_far;      // into the second-level cache only, or else the first
  const float* weights;   // [taps][channels][nr]
  const float* init;      // [m or 1][nr]
  size_t init_stride;     // nr, or 0 where all rows start from the same values
  float* park;            // [m][nr], or null to finish
  const uint32_t* dests;  // [m]: output positions
  float* y;               // first channel of the panel at position 0
  const float* residual;  // the same place in the residual, or null
  size_t ldy;             // floats from one position to the next
  bool fetch_y;           // fetch what will be written to y while the product is computed
  size_t n;               // channels of the panel that exist, the last vector's first among them
  float lo, hi;
};

using Function = void (*)(const Tile&);

struct Kernel {
  const char* name;
  size_t mr, nr;
  Function run;
  size_t most_depth;  // taps times channels
};

#define SEMISPARSE_IGEMM(isa, mr, nr, most_depth) void igemm_##isa##_##mr##x##nr(const Tile& tile);
#include "kernels/igemm/kernels.inc"
#undef SEMISPARSE_IGEMM

}  // namespace semisparse::igemm
