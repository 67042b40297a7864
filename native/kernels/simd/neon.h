// 4 floats, AArch64. Internal linkage throughout, as in avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>

namespace {

struct Vec {
  using T = float32x4_t;
  static constexpr size_t kLanes = 4;
  static constexpr bool kFmaByLane = true;
  static T load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, T v) { vst1q_f32(p, v); }
  static T load_first(const float* p, size_t n) {
    float buffer[4] = {0, 0, 0, 0};
    for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
    return vld1q_f32(buffer);
  }
  static void store_first(float* p, T v, size_t n) {
    float buffer[4];
    vst1q_f32(buffer, v);
    for (size_t i = 0; i < n; ++i) p[i] = buffer[i];
  }
  static T set1(float v) { return vdupq_n_f32(v); }
  static T add(T a, T b) { return vaddq_f32(a, b); }
  static T sub(T a, T b) { return vsubq_f32(a, b); }
  static T mul(T a, T b) { return vmulq_f32(a, b); }
  static T div(T a, T b) { return vdivq_f32(a, b); }
  static T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
  static void accumulate(T& acc, T a, T b) { acc = fma(a, b, acc); }
  // c + a * b[K]: one instruction that needs no broadcast of b.
  template <int K>
  static T fma_lane(T a, T b, T c) {
    return vfmaq_laneq_f32(c, a, b, K);
  }
  // FMIN and FMAX give NaN where either operand is NaN.
  static T clamp(T v, T lo, T hi) { return vminq_f32(hi, vmaxq_f32(lo, v)); }
  static T max_nan(T a, T b) { return vmaxq_f32(a, b); }
  static T select_negative(T v, T negative, T otherwise) {
    return vbslq_f32(vcltzq_f32(v), negative, otherwise);
  }
  static T round(T v) { return vrndnq_f32(v); }
  // v * 2^e for integral e in [-126, 127].
  static T ldexp(T v, T e) {
    const int32x4_t bits = vshlq_n_s32(vcvtq_s32_f32(e), 23);
    return vmulq_f32(v, vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(127 << 23))));
  }
};

}  // namespace
