// 4 floats, AArch64. Internal linkage throughout, as in avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstddef>

namespace {

struct Vec {
  using T = float32x4_t;
  static constexpr size_t kLanes = 4;
  static constexpr size_t kRegisters = 32;
  static constexpr bool kFmaByLane = true;
  static T load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, T v) { vst1q_f32(p, v); }
  // By lanes: a loop over the floats becomes a call of memcpy, around which everything is spilled.
  static T load_first(const float* p, size_t n) {
    if (n >= 4) return load(p);
    T v = vdupq_n_f32(0);
    if (n == 1) return vld1q_lane_f32(p, v, 0);
    if (n >= 2) v = vcombine_f32(vld1_f32(p), vdup_n_f32(0));
    return n == 3 ? vld1q_lane_f32(p + 2, v, 2) : v;
  }
  static void store_first(float* p, T v, size_t n) {
    if (n >= 4) return store(p, v);
    if (n == 1) vst1q_lane_f32(p, v, 0);
    if (n >= 2) vst1_f32(p, vget_low_f32(v));
    if (n == 3) vst1q_lane_f32(p + 2, v, 2);
  }
  static T set1(float v) { return vdupq_n_f32(v); }
  static T add(T a, T b) { return vaddq_f32(a, b); }
  static T sub(T a, T b) { return vsubq_f32(a, b); }
  static T mul(T a, T b) { return vmulq_f32(a, b); }
  static T div(T a, T b) { return vdivq_f32(a, b); }
  static T sqrt(T a) { return vsqrtq_f32(a); }
  static float sum(T a) { return vaddvq_f32(a); }
  static T fma(T a, T b, T c) { return vfmaq_f32(c, a, b); }
  static void accumulate(T& acc, T a, T b) { acc = fma(a, b, acc); }
  // acc += a * b[K], one instruction that needs no broadcast of b. From the intrinsic GCC 12 makes
  // a copy of an accumulator in every seventh of them (8 x 8 kernel). Volatile, as is load_here, to
  // be left in the order in which they are written: GCC put products of one accumulator two
  // instructions apart, and weights right before their first use, for which cores that execute in
  // order wait. By LLVM's model of a Cortex-A55 the inner loop of 8 x 8 takes 57 cycles, before 85,
  // that of 7 x 8 52, before 94; by that of a Cortex-A57, which reorders, 64 and 56 as before.
  template <int K>
  static void accumulate_lane(T& acc, T a, T b) {
    asm volatile("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(acc) : "w"(a), "w"(b), "i"(K));
  }
  static T load_here(const float* p) {
    T v;
    asm volatile("ldr %q0, %1" : "=w"(v) : "m"(*reinterpret_cast<const T*>(p)));
    return v;
  }
  // FMIN and FMAX give NaN where either operand is NaN.
  static T clamp(T v, T lo, T hi) { return vminq_f32(hi, vmaxq_f32(lo, v)); }
  static T max_nan(T a, T b) { return vmaxq_f32(a, b); }
  static T select_negative(T v, T negative, T otherwise) {
    return vbslq_f32(vcltzq_f32(v), negative, otherwise);
  }
  // 2^(k - 127), where k in [1, 255] is what the lowest nine bits say; infinity for 255.
  static T power_of_two(T v) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(v), 23));
  }
};

}  // namespace
