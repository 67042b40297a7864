// The depthwise kernel over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/dwconv/dwconv.h"

namespace semisparse::dwconv {
namespace {

template <size_t NV>
inline void finish(const Strip& s, const Vec::T (&acc)[NV], size_t offset, size_t last, Vec::T lo,
                   Vec::T hi) {
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    const bool whole = last == Vec::kLanes || v + 1 < NV;
    const size_t at = offset + v * Vec::kLanes;
    Vec::T value = acc[v];
    if (s.residual != nullptr) {
      value = Vec::add(value,
                       whole ? Vec::load(s.residual + at) : Vec::load_first(s.residual + at, last));
    }
    value = Vec::clamp(value, lo, hi);
    if (whole) {
      Vec::store(s.y + at, value);
    } else {
      Vec::store_first(s.y + at, value, last);
    }
  }
}

// One block of NV vectors of channels for all rows. With kTaps known the weights stay in registers
// over the rows; kTaps 0 takes any number and reads them again.
template <size_t NV, size_t kTaps>
void block(const Strip& s, size_t c, size_t last) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  Vec::T bias[NV];
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) bias[v] = Vec::load(s.bias + c + v * kLanes);
  Vec::T w[kTaps == 0 ? 1 : kTaps][NV];
#pragma GCC unroll 16
  for (size_t t = 0; t < kTaps; ++t) {
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) w[t][v] = Vec::load(s.weights + t * s.ldw + c + v * kLanes);
  }
  for (size_t i = 0; i < s.m; ++i) {
    const float* const* rows = s.offsets == nullptr ? s.rows + i * s.taps : s.rows + i;
    Vec::T acc[NV];
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) acc[v] = bias[v];
    const auto tap = [&](size_t t, const Vec::T* weights) {
      const float* x = (s.offsets == nullptr ? rows[t] : rows[0] + s.offsets[t]) + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        const bool whole = last == kLanes || v + 1 < NV;
        const Vec::T value =
            whole ? Vec::load(x + v * kLanes) : Vec::load_first(x + v * kLanes, last);
        acc[v] = Vec::fma(value, weights[v], acc[v]);
      }
    };
    if constexpr (kTaps == 0) {
      for (size_t t = 0; t < s.taps; ++t) {
#pragma GCC unroll 4
        for (size_t v = 0; v < NV; ++v) w[0][v] = Vec::load(s.weights + t * s.ldw + c + v * kLanes);
        tap(t, w[0]);
      }
    } else {
#pragma GCC unroll 16
      for (size_t t = 0; t < kTaps; ++t) tap(t, w[t]);
    }
    finish<NV>(s, acc, s.dests[i] * s.ldy + c, last, lo, hi);
  }
}

template <size_t kTaps>
void all_channels(const Strip& s) {
  constexpr size_t kLanes = Vec::kLanes;
  size_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) block<2, kTaps>(s, c, kLanes);
  for (; c + kLanes <= s.channels; c += kLanes) block<1, kTaps>(s, c, kLanes);
  if (c < s.channels) block<1, kTaps>(s, c, s.channels - c);
}

void run(const Strip& s) {
  if (s.taps == 9) {
    all_channels<9>(s);
  } else if (s.taps == 1) {
    all_channels<1>(s);
  } else {
    all_channels<0>(s);
  }
}

}  // namespace
}  // namespace semisparse::dwconv

#define SEMISPARSE_DWCONV_DEFINE(isa)                   \
  namespace semisparse::dwconv {                        \
  void dwconv_##isa(const Strip& strip) { run(strip); } \
  }
