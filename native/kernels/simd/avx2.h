// 8 floats, AVX2 with FMA. Internal linkage throughout, as in avx512.h.
#pragma once

#include <immintrin.h>

#include <cstddef>

namespace {

struct Vec {
  using T = __m256;
  static constexpr size_t kLanes = 8;
  static constexpr size_t kRegisters = 16;
  static constexpr bool kFmaByLane = false;
  static T load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, T v) { _mm256_storeu_ps(p, v); }
  static __m256i first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static T load_first(const float* p, size_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_first(float* p, T v, size_t n) { _mm256_maskstore_ps(p, first(n), v); }
  static T set1(float v) { return _mm256_set1_ps(v); }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  static T div(T a, T b) { return _mm256_div_ps(a, b); }
  static T sqrt(T a) { return _mm256_sqrt_ps(a); }
  static float sum(T a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static T fma(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  // acc += a * b. From the intrinsic GCC 12 makes instructions that overwrite a or b instead, and
  // with 12 accumulators in 16 registers pays with copies and spills: 6 x 16 kernels had 65% of the
  // FMA peak with it, and have 96% so (EPYC, Zen 3).
  static void accumulate(T& acc, T a, T b) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
  }
  // x86 gives the second operand where either is NaN, so a NaN in v comes through.
  static T clamp(T v, T lo, T hi) { return _mm256_min_ps(hi, _mm256_max_ps(lo, v)); }
  static T max_nan(T a, T b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static T select_negative(T v, T negative, T otherwise) {
    return _mm256_blendv_ps(otherwise, negative, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
  }
  // 2^(k - 127), where k in [1, 255] is what the lowest nine bits say; infinity for 255.
  static T power_of_two(T v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
  }
};

}  // namespace
