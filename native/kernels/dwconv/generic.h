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

// With kTaps known the weights stay in registers over the rows.
template <size_t NV, size_t kTaps, bool kWhole>
void block(const Strip s, size_t c, Lanes<kWhole> lanes) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  Vec::T bias[NV];
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) bias[v] = Vec::load(s.bias + c + v * kLanes);
  Vec::T w[kTaps][NV];
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
#pragma GCC unroll 16
    for (size_t t = 0; t < kTaps; ++t) {
      const float* x = (s.offsets == nullptr ? rows[t] : rows[0] + s.offsets[t]) + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        acc[v] = Vec::fma(lanes.template load<NV>(x, v), w[t][v], acc[v]);
      }
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

template <size_t N>
struct Vectors {
  static constexpr size_t kCount = N;
};

// Calls f(Vectors<NV>, first channel, lanes) for all blocks of channels.
template <typename F>
inline void all_channels(const Strip& s, const F& f) {
  constexpr size_t kLanes = Vec::kLanes;
  size_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) f(Vectors<2>{}, c, Lanes<true>{kLanes});
  for (; c + kLanes <= s.channels; c += kLanes) f(Vectors<1>{}, c, Lanes<true>{kLanes});
  if (c < s.channels) f(Vectors<1>{}, c, Lanes<false>{s.channels - c});
}

// Filters of more taps than the registers hold weights. Positions are taken in groups, so that a
// weight is loaded once for all of them: 5x5 and 7x7 are 1.6 to 1.9 times as fast as with weights
// read again for each position (at 0.3 1.4 to 1.6), and on AVX2 3x3 1.04 to 1.19 times (EPYC, Zen
// 4). Groups of 3, 6 and 8 and single vectors of channels were slower on AVX2.
constexpr size_t kGroup = 4;

// Where tap t of position i lies.
template <bool kOffsets>
inline const float* tap_of(const Strip& s, size_t i, size_t t) {
  return kOffsets ? s.rows[i] + s.offsets[t] : s.rows[i * s.taps + t];
}

// The sums of a group begin with the bias.
template <size_t P, size_t NV>
inline void start(const Strip& s, size_t c, Vec::T (&acc)[P][NV]) {
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    acc[0][v] = Vec::load(s.bias + c + v * Vec::kLanes);
#pragma GCC unroll 8
    for (size_t p = 1; p < P; ++p) acc[p][v] = acc[0][v];
  }
}

// Positions anywhere.
template <size_t P, size_t NV, bool kOffsets, bool kWhole>
inline void apart(const Strip& s, size_t i, size_t c, Lanes<kWhole> lanes, Vec::T lo, Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  const float* weights = s.weights + c;
  for (size_t t = 0; t < s.taps; ++t, weights += s.ldw) {
    Vec::T w[NV];
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) w[v] = Vec::load(weights + v * kLanes);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) {
      const float* x = tap_of<kOffsets>(s, i + p, t) + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        acc[p][v] = Vec::fma(lanes.template load<NV>(x, v), w[v], acc[p][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, i + p, c, lanes, acc[p], lo, hi);
}

// Neighbours: each column of inputs is loaded once for all of them.
template <size_t K, size_t NV, bool kOffsets, bool kWhole>
inline void adjoining(const Strip& s, size_t i, size_t c, Lanes<kWhole> lanes, Vec::T lo,
                      Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t P = kGroup;
  const std::ptrdiff_t column = kOffsets ? s.offsets[1] : 0;
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  const float* weights = s.weights + c;
  for (size_t t = 0; t < s.taps; t += K) {
    Vec::T w[K][NV];
#pragma GCC unroll 8
    for (size_t k = 0; k < K; ++k, weights += s.ldw) {
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) w[k][v] = Vec::load(weights + v * kLanes);
    }
    const float* row = tap_of<kOffsets>(s, i, t);
#pragma GCC unroll 16
    for (size_t j = 0; j < P + K - 1; ++j) {
      const size_t last = j < K ? 0 : j - K + 1;
      const float* x = kOffsets ? row + static_cast<std::ptrdiff_t>(j) * column
                                : tap_of<kOffsets>(s, i + last, t + j - last);
      x += c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        const Vec::T in = lanes.template load<NV>(x, v);
#pragma GCC unroll 8
        for (size_t p = last; p < P && p <= j; ++p) {
          acc[p][v] = Vec::fma(in, w[j - p][v], acc[p][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, i + p, c, lanes, acc[p], lo, hi);
}

// Whether the taps of position i + 1 are those of position i but for one column.
template <size_t K, bool kOffsets>
bool adjoin(const Strip& s, size_t i) {
  if (kOffsets) return s.rows[i + 1] - s.rows[i] == s.offsets[1];
  const float* const* here = s.rows + i * s.taps;
  const float* const* there = here + s.taps;
  bool same = true;
  for (size_t t = 0; t < s.taps; t += K) {
    for (size_t k = 0; k + 1 < K; ++k) same &= here[t + k + 1] == there[t + k];
  }
  return same;
}

// K is the number of columns where neighbours are worth a way of their own, else 0.
template <size_t K, bool kOffsets>
void in_groups(const Strip strip) {
  constexpr size_t kMost = 64;  // groups
  const Vec::T lo = Vec::set1(strip.lo);
  const Vec::T hi = Vec::set1(strip.hi);
  Strip s = strip;
  for (size_t done = 0; done < strip.m; done += s.m) {
    s.m = strip.m - done < kMost * kGroup ? strip.m - done : kMost * kGroup;
    s.rows = strip.rows + done * (kOffsets ? 1 : s.taps);
    s.dests = strip.dests + done;
    bool together[kMost] = {};
    if constexpr (K != 0) {
      for (size_t g = 0; (g + 1) * kGroup <= s.m; ++g) {
        together[g] = true;
        for (size_t p = 0; p + 1 < kGroup; ++p) {
          together[g] = together[g] && adjoin<K, kOffsets>(s, g * kGroup + p);
        }
      }
    }
    all_channels(s, [&](auto vectors, size_t c, auto lanes) {
      constexpr size_t NV = decltype(vectors)::kCount;
      size_t i = 0;
      for (; i + kGroup <= s.m; i += kGroup) {
        if constexpr (K != 0) {
          if (together[i / kGroup]) {
            adjoining<K, NV, kOffsets>(s, i, c, lanes, lo, hi);
            continue;
          }
        }
        apart<kGroup, NV, kOffsets>(s, i, c, lanes, lo, hi);
      }
      for (; i < s.m; ++i) apart<1, NV, kOffsets>(s, i, c, lanes, lo, hi);
    });
  }
}

template <size_t K>
void in_groups(const Strip& s) {
  s.offsets == nullptr ? in_groups<K, false>(s) : in_groups<K, true>(s);
}

void run(const Strip& s) {
  constexpr bool kHoldsNine = Vec::kRegisters > 16;
  if (s.taps == 9 && s.columns == 3 && !kHoldsNine) {
    in_groups<3>(s);
  } else if (s.taps == 9 && s.columns == 3 && s.offsets != nullptr) {
    all_channels(s, [&](auto vectors, size_t c, auto lanes) {
      block_3x3<decltype(vectors)::kCount>(s, c, lanes);
    });
  } else if (s.taps == 9) {
    all_channels(s, [&](auto vectors, size_t c, auto lanes) {
      block<decltype(vectors)::kCount, 9>(s, c, lanes);
    });
  } else if (s.taps == 1) {
    all_channels(s, [&](auto vectors, size_t c, auto lanes) {
      block<decltype(vectors)::kCount, 1>(s, c, lanes);
    });
  } else if (s.columns == 5) {
    in_groups<5>(s);
  } else if (s.columns == 7) {
    in_groups<7>(s);
  } else {
    in_groups<0>(s);
  }
}

}  // namespace
}  // namespace semisparse::dwconv

#define SEMISPARSE_DWCONV_DEFINE(isa)                   \
  namespace semisparse::dwconv {                        \
  void dwconv_##isa(const Strip& strip) { run(strip); } \
  }
