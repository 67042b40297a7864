// The depthwise kernel over any vector type; used as kernels/igemm/generic.h is.
//
// A block is NV vectors of channels for all rows of the strip, so that the weights stay in
// registers over the rows. It has its own copy of the strip: a vector store may alias anything, so
// through a reference every field would be read again behind each (3 to 10% slower).
#pragma once

#include "kernels/dwconv/dwconv.h"

namespace semisparse::dwconv {
namespace {

// The lanes of a block's last vector: all of them, or the first few.
template <bool kWhole>
struct Lanes {
  size_t last;

  template <size_t NV>
  Vec::T load(const float* from, size_t v) const {
    from += v * Vec::kLanes;
    return kWhole || v + 1 < NV ? Vec::load(from) : Vec::load_first(from, last);
  }
  template <size_t NV>
  void store(float* to, size_t v, Vec::T value) const {
    to += v * Vec::kLanes;
    if (kWhole || v + 1 < NV) {
      Vec::store(to, value);
    } else {
      Vec::store_first(to, value, last);
    }
  }
};

// What follows the sums of row i of the strip.
template <size_t NV, bool kWhole>
inline void finish(const Strip& s, size_t i, size_t c, Lanes<kWhole> lanes, const Vec::T (&acc)[NV],
                   Vec::T lo, Vec::T hi) {
  const size_t at = s.dests[i] * s.ldy + c;
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    Vec::T value = acc[v];
    if (s.residual != nullptr) {
      value = Vec::add(value, lanes.template load<NV>(s.residual + at, v));
    }
    lanes.template store<NV>(s.y + at, v, Vec::clamp(value, lo, hi));
  }
}

// With kTaps known the weights stay in registers; kTaps 0 takes any number and reads them again.
template <size_t NV, size_t kTaps, bool kWhole>
void block(const Strip s, size_t c, Lanes<kWhole> lanes) {
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
        acc[v] = Vec::fma(lanes.template load<NV>(x, v), weights[v], acc[v]);
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
    finish<NV>(s, i, c, lanes, acc, lo, hi);
  }
}

// The same for a 3x3 filter all of whose taps are inside the plane: three row addresses and one
// step reach the nine taps, where an offset each takes as many loads as the inputs themselves.
template <size_t NV, bool kWhole>
void block_3x3(const Strip s, size_t c, Lanes<kWhole> lanes) {
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
    if (s.write_ahead != 0) {
      float* soon = s.y + (s.dests[i] + s.write_ahead) * s.ldy + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) __builtin_prefetch(soon + v * kLanes, 1, 3);
    }
    Vec::T acc[NV];
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) acc[v] = bias[v];
    const float* x = s.rows[i] + c;
#pragma GCC unroll 3
    for (size_t ky = 0; ky < 3; ++ky, x += row) {
#pragma GCC unroll 3
      for (std::ptrdiff_t kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 4
        for (size_t v = 0; v < NV; ++v) {
          acc[v] = Vec::fma(lanes.template load<NV>(x + kx * column, v),
                            w[3 * ky + static_cast<size_t>(kx)][v], acc[v]);
        }
      }
    }
    finish<NV>(s, i, c, lanes, acc, lo, hi);
  }
}

template <typename Two, typename One, typename Part>
inline void all_channels(const Strip& s, const Two& two, const One& one, const Part& part) {
  constexpr size_t kLanes = Vec::kLanes;
  const Lanes<true> whole{kLanes};
  size_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) two(s, c, whole);
  for (; c + kLanes <= s.channels; c += kLanes) one(s, c, whole);
  if (c < s.channels) part(s, c, Lanes<false>{s.channels - c});
}

template <size_t kTaps>
void all_blocks(const Strip& s) {
  all_channels(s, block<2, kTaps, true>, block<1, kTaps, true>, block<1, kTaps, false>);
}

void run(const Strip& s) {
  if (s.taps == 9 && s.columns == 3 && s.offsets != nullptr) {
    all_channels(s, block_3x3<2, true>, block_3x3<1, true>, block_3x3<1, false>);
  } else if (s.taps == 9) {
    all_blocks<9>(s);
  } else if (s.taps == 1) {
    all_blocks<1>(s);
  } else {
    all_blocks<0>(s);
  }
}

}  // namespace
}  // namespace semisparse::dwconv

#define SEMISPARSE_DWCONV_DEFINE(isa)                   \
  namespace semisparse::dwconv {                        \
  void dwconv_##isa(const Strip& strip) { run(strip); } \
  }
