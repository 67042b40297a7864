// The pooling kernels over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/pool/pool.h"

namespace semisparse::pool {
namespace {

struct Max {
  static Vec::T first(Vec::T x) { return x; }
  static Vec::T combine(Vec::T acc, Vec::T x) { return Vec::max_nan(acc, x); }
  static Vec::T last(Vec::T acc) { return acc; }
};
struct Sum {
  static Vec::T first(Vec::T x) { return x; }
  static Vec::T combine(Vec::T acc, Vec::T x) { return Vec::add(acc, x); }
  static Vec::T last(Vec::T acc) { return acc; }
};
struct Norm {
  static Vec::T first(Vec::T x) { return Vec::mul(x, x); }
  static Vec::T combine(Vec::T acc, Vec::T x) { return Vec::fma(x, x, acc); }
  static Vec::T last(Vec::T acc) { return Vec::sqrt(acc); }
};

template <typename Op, size_t NV>
void block(const Window& w, size_t c, size_t last) {
  constexpr size_t kLanes = Vec::kLanes;
  const bool whole = last == kLanes;
  const auto load = [&](size_t t, size_t v) {
    const float* x = w.rows[t] + c + v * kLanes;
    return whole ? Vec::load(x) : Vec::load_first(x, last);
  };
  Vec::T acc[NV];
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) acc[v] = Op::first(load(0, v));
  for (size_t t = 1; t < w.taps; ++t) {
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) acc[v] = Op::combine(acc[v], load(t, v));
  }
  const Vec::T scale = Vec::set1(w.scale);
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    const Vec::T value = Vec::mul(Op::last(acc[v]), scale);
    float* y = w.y + c + v * kLanes;
    if (whole) {
      Vec::store(y, value);
    } else {
      Vec::store_first(y, value, last);
    }
  }
}

template <typename Op>
void run(const Window& w) {
  constexpr size_t kLanes = Vec::kLanes;
  size_t c = 0;
  for (; c + 4 * kLanes <= w.channels; c += 4 * kLanes) block<Op, 4>(w, c, kLanes);
  for (; c + kLanes <= w.channels; c += kLanes) block<Op, 1>(w, c, kLanes);
  if (c < w.channels) block<Op, 1>(w, c, w.channels - c);
}

}  // namespace
}  // namespace semisparse::pool

#define SEMISPARSE_POOL_DEFINE(isa)                                   \
  namespace semisparse::pool {                                        \
  void pool_max_##isa(const Window& window) { run<Max>(window); }     \
  void pool_average_##isa(const Window& window) { run<Sum>(window); } \
  void pool_norm_##isa(const Window& window) { run<Norm>(window); }   \
  }
