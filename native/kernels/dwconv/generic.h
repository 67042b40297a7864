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

// The same for a 3x3 filter all of whose taps are inside the plane: three row addresses and one
// step reach the nine taps, where an offset each takes as many loads as the inputs themselves.
template <size_t NV>
void block_3x3(const Strip& s, size_t c, size_t last) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  const std::ptrdiff_t column = s.offsets[1];
  const std::ptrdiff_t row = s.offsets[3];
  Vec::T bias[NV];
  Vec::T w[9][NV];
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    bias[v] = Vec::load(s.bias + c + v * kLanes);
#pragma GCC unroll 16
    for (size_t t = 0; t < 9; ++t) w[t][v] = Vec::load(s.weights + t * s.ldw + c + v * kLanes);
  }
  for (size_t i = 0; i < s.m; ++i) {
    const float* x = s.rows[i] + c;
    if (s.write_ahead != 0) {
      float* soon = s.y + (s.dests[i] + s.write_ahead) * s.ldy + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) __builtin_prefetch(soon + v * kLanes, 1, 3);
    }
    Vec::T acc[NV];
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) acc[v] = bias[v];
#pragma GCC unroll 3
    for (size_t ky = 0; ky < 3; ++ky, x += row) {
#pragma GCC unroll 3
      for (std::ptrdiff_t kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 4
        for (size_t v = 0; v < NV; ++v) {
          const bool whole = last == kLanes || v + 1 < NV;
          const float* at = x + kx * column + v * kLanes;
          const Vec::T value = whole ? Vec::load(at) : Vec::load_first(at, last);
          acc[v] = Vec::fma(value, w[3 * ky + static_cast<size_t>(kx)][v], acc[v]);
        }
      }
    }
    finish<NV>(s, acc, s.dests[i] * s.ldy + c, last, lo, hi);
  }
}

template <typename Block2, typename Block1>
inline void all_channels(const Strip& s, const Block2& two, const Block1& one) {
  constexpr size_t kLanes = Vec::kLanes;
  size_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) two(s, c, kLanes);
  for (; c + kLanes <= s.channels; c += kLanes) one(s, c, kLanes);
  if (c < s.channels) one(s, c, s.channels - c);
}

void run(const Strip& s) {
  if (s.taps == 9 && s.columns == 3 && s.offsets != nullptr) {
    all_channels(s, block_3x3<2>, block_3x3<1>);
  } else if (s.taps == 9) {
    all_channels(s, block<2, 9>, block<1, 9>);
  } else if (s.taps == 1) {
    all_channels(s, block<2, 1>, block<1, 1>);
  } else {
    all_channels(s, block<2, 0>, block<1, 0>);
  }
}

}  // namespace
}  // namespace semisparse::dwconv

#define SEMISPARSE_DWCONV_DEFINE(isa)                   \
  namespace semisparse::dwconv {                        \
  void dwconv_##isa(const Strip& strip) { run(strip); } \
  }
