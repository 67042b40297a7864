// 16 floats. Everything here has internal linkage, so that code compiled for this instruction set
// can never be picked by the linker for another one.
#pragma once

// GCC's own header leaves merge operands undefined on purpose, and GCC 12 warns about it (PR
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstddef>

namespace {

struct Vec {
  using T = __m512;
  static constexpr size_t kLanes = 16;
  static constexpr size_t kRegisters = 32;
  static constexpr bool kFmaByLane = false;
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, T v) { _mm512_storeu_ps(p, v); }
  static __mmask16 first(size_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static T load_first(const float* p, size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_first(float* p, T v, size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
  static T set1(float v) { return _mm512_set1_ps(v); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T div(T a, T b) { return _mm512_div_ps(a, b); }
  static T sqrt(T a) { return _mm512_sqrt_ps(a); }
  static float sum(T a) { return _mm512_reduce_add_ps(a); }
  static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static void accumulate(T& acc, T a, T b) { acc = fma(a, b, acc); }
  // x86 gives the second operand where either is NaN, so a NaN in v comes through.
  static T clamp(T v, T lo, T hi) { return _mm512_min_ps(hi, _mm512_max_ps(lo, v)); }
  static T max_nan(T a, T b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
  }
  static T select_negative(T v, T negative, T otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ),
                              negative);
  }
  // 2^(k - 127), where k in [1, 255] is what the lowest nine bits say; infinity for 255.
  static T power_of_two(T v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23));
  }
};

// 8 floats, for the end of a panel: on processors that take two passes for a vector of 16, half the
// time.
struct HalfVec {
  using T = __m256;
  static constexpr size_t kLanes = 8;
  static __mmask8 first(size_t n) { return static_cast<__mmask8>((1u << n) - 1); }
  static T load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  static T load_first(const float* p, size_t n) { return _mm256_maskz_loadu_ps(first(n), p); }
  static void store_first(float* p, T v, size_t n) { _mm256_mask_storeu_ps(p, first(n), v); }
  static T set1(float v) { return _mm256_set1_ps(v); }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static T clamp(T v, T lo, T hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
};

}  // namespace
