// The contract of winograd.h as matrix products in double precision. Never optimised.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/winograd/winograd.h"

namespace semisparse::winograd {

// B^T and A^T of winograd.h.
template <size_t kOutputs>
struct Matrices;

template <>
struct Matrices<2> {
  static constexpr double kInput[4][4] = {
      {1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
  static constexpr double kOutput[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
};

template <>
struct Matrices<4> {
  static constexpr double kInput[6][6] = {
      {81.0 / 64, 0, -45.0 / 16, 0, 1, 0},       {0, -27.0 / 16, -9.0 / 4, 3.0 / 4, 1, 0},
      {0, 27.0 / 16, -9.0 / 4, -3.0 / 4, 1, 0},  {0, -27.0 / 32, -9.0 / 16, 3.0 / 2, 1, 0},
      {0, 27.0 / 32, -9.0 / 16, -3.0 / 2, 1, 0}, {0, 81.0 / 64, 0, -45.0 / 16, 0, 1}};
  static constexpr double kOutput[4][6] = {{1, 1, 1, 1, 1, 0},
                                           {0, 3.0 / 4, -3.0 / 4, 3.0 / 2, -3.0 / 2, 0},
                                           {0, 9.0 / 16, 9.0 / 16, 9.0 / 4, 9.0 / 4, 0},
                                           {0, 27.0 / 64, -27.0 / 64, 27.0 / 8, -27.0 / 8, 1}};
};

// (matrix * values * matrix^T)[i][j]
template <size_t N, size_t kInputs>
double transformed(const double (&matrix)[N][kInputs], const double* values, size_t i, size_t j) {
  double sum = 0;
  for (size_t k = 0; k < kInputs * kInputs; ++k) {
    sum += matrix[i][k / kInputs] * values[k] * matrix[j][k % kInputs];
  }
  return sum;
}

template <size_t kOutputs>
void reference(const Input& tile) {
  constexpr size_t kInputs = inputs_of(kOutputs);
  constexpr size_t kProducts = products_of(kOutputs);
  for (size_t c = 0; c < tile.channels; ++c) {
    double d[kProducts];
    for (size_t k = 0; k < kProducts; ++k) d[k] = tile.pixels[k][c];
    for (size_t k = 0; k < kProducts; ++k) {
      tile.v[k * tile.channels + c] =
          static_cast<float>(transformed(Matrices<kOutputs>::kInput, d, k / kInputs, k % kInputs));
    }
  }
}

template <size_t kOutputs>
bool reference(const Output& tile) {
  constexpr size_t kProducts = products_of(kOutputs);
  bool finite = true;
  for (size_t j = 0; j < tile.n; ++j) {
    double m[kProducts];
    for (size_t k = 0; k < kProducts; ++k) {
      m[k] = tile.m[k * tile.stride + j];
      finite &= std::isfinite(m[k]);
    }
    for (size_t e = 0; e < tile.count; ++e) {
      const Entry& entry = tile.entries[e];
      const size_t at = entry.position * tile.ldy + j;
      const double sum = transformed(Matrices<kOutputs>::kOutput, m, entry.slot / kOutputs,
                                     entry.slot % kOutputs) +
                         tile.bias[j] + (tile.residual != nullptr ? tile.residual[at] : 0.0);
      tile.y[at] = static_cast<float>(
          std::min(std::max(sum, static_cast<double>(tile.lo)), static_cast<double>(tile.hi)));
    }
  }
  return finite;
}

}  // namespace semisparse::winograd
