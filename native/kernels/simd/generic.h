// 4 floats in plain C++, for CPUs without a path of their own; the compiler vectorises what it can.
// Internal linkage throughout, as in avx512.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  struct T {
    float f[4];
  };
  static constexpr size_t kLanes = 4;
  static constexpr size_t kRegisters = 16;
  static constexpr bool kFmaByLane = false;
  template <typename F>
  static T map(F f) {
    return T{{f(0), f(1), f(2), f(3)}};
  }
  static T load(const float* p) { return T{{p[0], p[1], p[2], p[3]}}; }
  static void store(float* p, T v) { store_first(p, v, 4); }
  static T load_first(const float* p, size_t n) {
    T v = set1(0);
    for (size_t i = 0; i < n; ++i) v.f[i] = p[i];
    return v;
  }
  static void store_first(float* p, T v, size_t n) {
    for (size_t i = 0; i < n; ++i) p[i] = v.f[i];
  }
  static T set1(float v) { return T{{v, v, v, v}}; }
  static T add(T a, T b) {
    return map([&](int i) { return a.f[i] + b.f[i]; });
  }
  static T sub(T a, T b) {
    return map([&](int i) { return a.f[i] - b.f[i]; });
  }
  static T mul(T a, T b) {
    return map([&](int i) { return a.f[i] * b.f[i]; });
  }
  static T div(T a, T b) {
    return map([&](int i) { return a.f[i] / b.f[i]; });
  }
  static T sqrt(T a) {
    return map([&](int i) { return __builtin_sqrtf(a.f[i]); });
  }
  static float sum(T a) { return (a.f[0] + a.f[1]) + (a.f[2] + a.f[3]); }
  static T fma(T a, T b, T c) {
    return map([&](int i) { return a.f[i] * b.f[i] + c.f[i]; });
  }
  static void accumulate(T& acc, T a, T b) { acc = fma(a, b, acc); }
  // The comparisons are turned so that a NaN in v comes through.
  static T clamp(T v, T lo, T hi) {
    return map([&](int i) {
      const float x = lo.f[i] > v.f[i] ? lo.f[i] : v.f[i];
      return hi.f[i] < x ? hi.f[i] : x;
    });
  }
  static T max_nan(T a, T b) {
    return map([&](int i) { return a.f[i] >= b.f[i] || std::isnan(a.f[i]) ? a.f[i] : b.f[i]; });
  }
  static T select_negative(T v, T negative, T otherwise) {
    return map([&](int i) { return v.f[i] < 0 ? negative.f[i] : otherwise.f[i]; });
  }
  // 2^(k - 127), where k in [1, 255] is what the lowest nine bits say; infinity for 255.
  static T power_of_two(T v) {
    return map([&](int i) {
      uint32_t bits;
      std::memcpy(&bits, &v.f[i], sizeof(bits));
      bits <<= 23;
      float power;
      std::memcpy(&power, &bits, sizeof(power));
      return power;
    });
  }
};

}  // namespace
