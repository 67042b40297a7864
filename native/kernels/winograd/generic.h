// The Winograd transforms over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/winograd/winograd.h"

namespace semisparse::winograd {
namespace {

constexpr float kNear2 = kNear * kNear;
constexpr float kFar2 = kFar * kFar;

// B^T d for one row or column of d.
template <size_t kOutputs>
inline void to_products(const Vec::T* d, Vec::T* v);

template <>
inline void to_products<2>(const Vec::T* d, Vec::T* v) {
  v[0] = Vec::sub(d[0], d[2]);
  v[1] = Vec::add(d[2], d[1]);
  v[2] = Vec::sub(d[2], d[1]);
  v[3] = Vec::sub(d[3], d[1]);
}

template <>
inline void to_products<4>(const Vec::T* d, Vec::T* v) {
  const Vec::T near2 = Vec::set1(-kNear2), far2 = Vec::set1(-kFar2);
  const Vec::T sum = Vec::set1(-kNear2 - kFar2), product = Vec::set1(kNear2 * kFar2);
  const Vec::T near_even = Vec::fma(far2, d[2], d[4]), near_odd = Vec::fma(far2, d[1], d[3]);
  const Vec::T far_even = Vec::fma(near2, d[2], d[4]), far_odd = Vec::fma(near2, d[1], d[3]);
  v[0] = Vec::fma(product, d[0], Vec::fma(sum, d[2], d[4]));
  v[1] = Vec::fma(Vec::set1(kNear), near_odd, near_even);
  v[2] = Vec::fma(Vec::set1(-kNear), near_odd, near_even);
  v[3] = Vec::fma(Vec::set1(kFar), far_odd, far_even);
  v[4] = Vec::fma(Vec::set1(-kFar), far_odd, far_even);
  v[5] = Vec::fma(product, d[1], Vec::fma(sum, d[3], d[5]));
}

// A^T m for one row or column of m.
template <size_t kOutputs>
inline void to_outputs(const Vec::T* m, Vec::T* o);

template <>
inline void to_outputs<2>(const Vec::T* m, Vec::T* o) {
  o[0] = Vec::add(m[0], Vec::add(m[1], m[2]));
  o[1] = Vec::add(m[3], Vec::sub(m[1], m[2]));
}

template <>
inline void to_outputs<4>(const Vec::T* m, Vec::T* o) {
  const Vec::T near_even = Vec::add(m[1], m[2]), near_odd = Vec::sub(m[1], m[2]);
  const Vec::T far_even = Vec::add(m[3], m[4]), far_odd = Vec::sub(m[3], m[4]);
  const auto sum = [](float a, Vec::T x, float b, Vec::T y) {
    return Vec::fma(Vec::set1(a), x, Vec::mul(Vec::set1(b), y));
  };
  o[0] = Vec::add(m[0], Vec::add(near_even, far_even));
  o[1] = sum(kNear, near_odd, kFar, far_odd);
  o[2] = sum(kNear2, near_even, kFar2, far_even);
  o[3] = Vec::add(m[5], sum(kNear2 * kNear, near_odd, kFar2 * kFar, far_odd));
}

// `last` is how many lanes count: all of them, unless it is the tail.
template <size_t kOutputs, bool kWhole>
void input_block(const Input& tile, size_t c, size_t last) {
  constexpr size_t kInputs = inputs_of(kOutputs);
  Vec::T t[kInputs * kInputs];
#pragma GCC unroll 6
  for (size_t j = 0; j < kInputs; ++j) {
    Vec::T d[kInputs];
    Vec::T v[kInputs];
#pragma GCC unroll 6
    for (size_t i = 0; i < kInputs; ++i) {
      const float* from = tile.pixels[i * kInputs + j] + c;
      d[i] = kWhole ? Vec::load(from) : Vec::load_first(from, last);
    }
    to_products<kOutputs>(d, v);
#pragma GCC unroll 6
    for (size_t i = 0; i < kInputs; ++i) t[i * kInputs + j] = v[i];
  }
#pragma GCC unroll 6
  for (size_t i = 0; i < kInputs; ++i) {
    Vec::T v[kInputs];
    to_products<kOutputs>(t + i * kInputs, v);
#pragma GCC unroll 6
    for (size_t j = 0; j < kInputs; ++j) {
      float* to = tile.v + (i * kInputs + j) * tile.channels + c;
      if (kWhole) {
        Vec::store(to, v[j]);
      } else {
        Vec::store_first(to, v[j], last);
      }
    }
  }
}

template <size_t kOutputs>
void input(const Input& tile) {
  size_t c = 0;
  for (; c + Vec::kLanes <= tile.channels; c += Vec::kLanes) {
    input_block<kOutputs, true>(tile, c, 0);
  }
  if (c < tile.channels) input_block<kOutputs, false>(tile, c, tile.channels - c);
}

// Gives a vector that is zero where all outputs are finite and not a number where one is not.
template <size_t kOutputs, bool kWhole>
Vec::T output_block(const Output& tile, size_t c, size_t last) {
  constexpr size_t kInputs = inputs_of(kOutputs);
  const Vec::T bias = Vec::load(tile.bias + c);
  const Vec::T zero = Vec::set1(0);
  Vec::T t[kOutputs * kInputs];
#pragma GCC unroll 6
  for (size_t j = 0; j < kInputs; ++j) {
    Vec::T m[kInputs];
#pragma GCC unroll 6
    for (size_t i = 0; i < kInputs; ++i) {
      m[i] = Vec::load(tile.m + (i * kInputs + j) * tile.stride + c);
    }
    Vec::T column[kOutputs];
    to_outputs<kOutputs>(m, column);
#pragma GCC unroll 4
    for (size_t i = 0; i < kOutputs; ++i) t[i * kInputs + j] = column[i];
  }
  Vec::T o[kOutputs * kOutputs];
  Vec::T check = zero;
#pragma GCC unroll 4
  for (size_t i = 0; i < kOutputs; ++i) {
    Vec::T row[kOutputs];
    to_outputs<kOutputs>(t + i * kInputs, row);
#pragma GCC unroll 4
    for (size_t j = 0; j < kOutputs; ++j) {
      check = Vec::fma(row[j], zero, check);
      o[i * kOutputs + j] = Vec::add(row[j], bias);
    }
  }
  const Vec::T lo = Vec::set1(tile.lo);
  const Vec::T hi = Vec::set1(tile.hi);
  for (size_t e = 0; e < tile.count; ++e) {
    const size_t at = tile.entries[e].position * tile.ldy + c;
    Vec::T value = o[tile.entries[e].slot];
    if (tile.residual != nullptr) {
      const float* from = tile.residual + at;
      value = Vec::add(value, kWhole ? Vec::load(from) : Vec::load_first(from, last));
    }
    value = Vec::clamp(value, lo, hi);
    if (kWhole) {
      Vec::store(tile.y + at, value);
    } else {
      Vec::store_first(tile.y + at, value, last);
    }
  }
  return check;
}

template <size_t kOutputs>
bool output(const Output& tile) {
  Vec::T check = Vec::set1(0);
  size_t c = 0;
  for (; c + Vec::kLanes <= tile.n; c += Vec::kLanes) {
    check = Vec::add(check, output_block<kOutputs, true>(tile, c, 0));
  }
  if (c < tile.n) check = Vec::add(check, output_block<kOutputs, false>(tile, c, tile.n - c));
  float lanes[Vec::kLanes];
  Vec::store(lanes, check);
  bool finite = true;
  for (const float lane : lanes) finite &= lane == 0;
  return finite;
}

}  // namespace
}  // namespace semisparse::winograd

#define SEMISPARSE_WINOGRAD_DEFINE(isa, t)                                               \
  namespace semisparse::winograd {                                                       \
  void winograd_input_##isa##_##t##x##t(const Input& tile) { input<t>(tile); }           \
  bool winograd_output_##isa##_##t##x##t(const Output& tile) { return output<t>(tile); } \
  }
