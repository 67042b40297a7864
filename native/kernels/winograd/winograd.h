// Winograd's F(4x4, 3x3): 4 x 4 outputs of a 3 x 3 convolution with stride 1 from 6 x 6 inputs,
// with 36 multiplications for each input and output channel instead of 144 (Lavin and Gray, arXiv
// 1509.09308). For a tile of inputs d, a filter g and outputs o, with the points 0, p, -p, q, -q
// and infinity, p = 3/4 and q = 3/2,
//
//     o = A^T [ (G g G^T) . (B^T d B) ] A
//
//         p2q2    0    -p2-q2    0     1   0            64/81     0     0
//           0  -pq2     -q2      p     1   0          -128/243 -32/81 -8/27
//     B^T = 0   pq2     -q2     -p     1   0     G =  -128/243  32/81 -8/27
//           0  -p2q     -p2      q     1   0            32/243  16/81  8/27
//           0   p2q     -p2     -q     1   0            32/243 -16/81  8/27
//           0  p2q2      0    -p2-q2   0   1              0       0     1
//
//           1   1   1   1   1   0
//     A^T = 0   p  -p   q  -q   0
//           0  p2  p2  q2  q2   0
//           0  p3 -p3  q3 -q3   1
//
// where the products in brackets are summed over input channels: 36 matrix multiplications, which
// are the indirect-GEMM kernels' work. Here are the transforms on both sides of them.
//
// With the usual points 1 and 2, sums over 64 channels had twice the error (1.7e-6 of the outputs'
// norm instead of 0.83e-6) and five times the largest one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::winograd {

constexpr size_t kOutputs = 4;  // a side of a tile of outputs
constexpr size_t kInputs = 6;   // and of the inputs it needs
constexpr size_t kProducts = kInputs * kInputs;
constexpr float kNear = 0.75f;  // p
constexpr float kFar = 1.5f;    // q

// v[k * channels + c] = (B^T d B)[k / 6][k % 6] of channel c, for d[i][j] = pixels[i * 6 + j][c].
struct Input {
  const float* const* pixels;  // [36]
  size_t channels;             // >= 1
  float* v;                    // [36][channels]
};

// Output `slot` of a tile, row-major, goes to `position` of the plane. A position outside of the
// plane has no entry, nor has a masked one; one that masked positions copy has several.
struct Entry {
  uint32_t slot, position;
};

// For every entry and j < n, with o = A^T m A of channel j, where m[k / 6][k % 6] = m[k * stride +
// j],
//
//     y[position * ldy + j] = min(max(o[slot] + bias[j] + residual[position * ldy + j], lo), hi)
//
// Gives whether all of the tile's o are finite. Where they are not, a direct convolution might have
// been at most of the positions, and what y holds there is not to be used.
struct Output {
  const float* m;  // [36][n], readable up to whole vectors
  size_t stride;
  const float* bias;  // [n], readable up to whole vectors
  const Entry* entries;
  size_t count;
  float* y;               // first of these channels at position 0
  const float* residual;  // the same place in the residual, or null
  size_t ldy;
  size_t n;  // >= 1
  float lo, hi;
};

using InputFunction = void (*)(const Input&);
using OutputFunction = bool (*)(const Output&);

struct Kernel {
  const char* name;
  InputFunction input;
  OutputFunction output;
};

#define SEMISPARSE_WINOGRAD(isa)                \
  void winograd_input_##isa(const Input& tile); \
  bool winograd_output_##isa(const Output& tile);
#include "kernels/winograd/kernels.inc"
#undef SEMISPARSE_WINOGRAD

}  // namespace semisparse::winograd
