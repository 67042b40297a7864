// Depthwise convolution: every channel has its own filter of `height` x `width` taps.
//
// One call computes `m` output positions for `channels` channels:
//
//     acc[i][c] = bias[c] + sum over taps (ky, kx) in windows[i] of
//                 rows[i][ky * row_step + kx * column_step + c] * w[c / kBlock][ky][kx][c % kBlock]
//     y[d * ldy + c] = min(max(acc[i][c] + residual[d * ldy + c], lo), hi)      d = dests[i]
//
// Channels lie side by side in memory and are what the vectors run over. What a tap outside of the
// plane would read is zero, so those taps are left out.
//
// Where `taps` is given it says where each tap reads, for inputs of which not every position is in
// its place:
//
//     acc[i][c] = bias[c] + sum over all taps t = (ky, kx) of
//                 x[taps[i * height * width + t] + c] * w[c / kBlock][ky][kx][c % kBlock]
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::dwconv {

// Channels whose weights lie together, from the first tap to the last, so that they are fetched as
// one stream: with all channels of a tap side by side 1152 of them and 5x5 at 7x7 took 74 instead
// of 63 us in a network (EPYC, Zen 4).
constexpr size_t kBlock = 32;

// The taps of a position that lie inside the plane: those of the filter's rows [top, bottom) and
// columns [left, right), of which there may be none.
struct Window {
  uint32_t top, bottom, left, right;
};

struct Strip {
  size_t m;                    // >= 1
  size_t height, width;        // of the filter, >= 1
  size_t channels;             // >= 1
  const uint32_t* taps;        // [m][height * width], or null for those of `rows`
  const float* x;              // with taps
  const float* const* rows;    // [m]: where the first tap would be if it were inside
  const Window* windows;       // [m]; null: all taps are inside
  std::ptrdiff_t row_step;     // floats from a tap to the one below it
  std::ptrdiff_t column_step;  // and beside it
  const float* zeros;          // [channels], or null where windows is
  const float* weights;        // w: [blocks of channels][height][width][kBlock]
  const float* bias;           // [channels], readable up to whole vectors
  const uint32_t* dests;       // [m]: output positions, no two alike
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
  // Filters of up to so many taps want strips whose positions are alike in whether all their taps
  // are inside; others do as well with any.
  size_t most_taps_alike;
};

#define SEMISPARSE_DWCONV(isa, most_taps_alike) void dwconv_##isa(const Strip& strip);
#include "kernels/dwconv/kernels.inc"
#undef SEMISPARSE_DWCONV

}  // namespace semisparse::dwconv
