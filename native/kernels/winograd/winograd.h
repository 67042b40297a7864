// Winograd's F(2x2, 3x3) and F(4x4, 3x3): tiles of t x t outputs of a 3 x 3 convolution with stride
// 1 from s x s inputs, s = t + 2, with s^2 multiplications for each input and output channel
// instead of 9 t^2 (Lavin and Gray, arXiv 1509.09308). For a tile of inputs d, a filter g and
// outputs o,
//
//     o = A^T [ (G g G^T) . (B^T d B) ] A
//
// where the products in brackets are summed over input channels: s^2 matrix multiplications, which
// are the indirect-GEMM kernels' work. Here are the transforms on both sides of them.
//
// F(2x2, 3x3) has the points 0, 1, -1 and infinity:
//
//           1  0 -1  0          1    0    0
//     B^T = 0  1  1  0     G = 1/2  1/2  1/2     A^T = 1  1  1  0
//           0 -1  1  0         1/2 -1/2  1/2           0  1 -1  1
//           0 -1  0  1          0    0    1
//
// F(4x4, 3x3) has 0, p, -p, q, -q and infinity, p = 3/4 and q = 3/2:
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
// With the usual points 1 and 2 for the latter, sums over 64 channels had twice the error (1.7e-6
// of the outputs' norm instead of 0.83e-6) and five times the largest one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semisparse::winograd {

constexpr float kNear = 0.75f;  // p
constexpr float kFar = 1.5f;    // q

constexpr size_t inputs_of(size_t outputs) { return outputs + 2; }
constexpr size_t products_of(size_t outputs) { return inputs_of(outputs) * inputs_of(outputs); }

// v[k * channels + c] = (B^T d B)[k / s][k % s] of channel c, for d[i][j] = pixels[i * s + j][c].
struct Input {
  const float* const* pixels;  // [s * s]
  size_t channels;             // >= 1
  float* v;                    // [s * s][channels]
};

// Output `slot` of a tile, row-major, goes to `position` of the plane. A position outside of the
// plane has no entry, nor has a masked one; one that masked positions copy has several.
struct Entry {
  uint32_t slot, position;
};

// For every entry and j < n, with o = A^T m A of channel j, where m[k / s][k % s] is m[k * stride +
// j],
//
//     y[position * ldy + j] = min(max(o[slot] + bias[j] + residual[position * ldy + j], lo), hi)
//
// Gives whether all of the tile's o are finite. Where they are not, a direct convolution might have
// been at most of the positions, and what y holds there is not to be used.
struct Output {
  const float* m;  // [s * s][n], readable up to whole vectors
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
  size_t outputs;  // t
  InputFunction input;
  OutputFunction output;
};

#define SEMISPARSE_WINOGRAD(isa, t)                         \
  void winograd_input_##isa##_##t##x##t(const Input& tile); \
  bool winograd_output_##isa##_##t##x##t(const Output& tile);
#include "kernels/winograd/kernels.inc"
#undef SEMISPARSE_WINOGRAD

}  // namespace semisparse::winograd
