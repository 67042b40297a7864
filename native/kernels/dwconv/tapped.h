// Depthwise sums over taps that are found by a class of the kernel's: for strips that say where
// each tap reads, and for whoever would rather find them all beforehand.
//
// Positions are taken in groups, so that a weight is loaded once for all of them: 5x5 and 7x7 are
// 1.6 to 1.9 times as fast as with weights read again for each position (at 0.3 1.4 to 1.6), and on
// AVX2 3x3 1.04 to 1.19 times (EPYC, Zen 4). Groups of 3, 6 and 8 and single vectors of channels
// were slower on AVX2.
#pragma once

#include "kernels/dwconv/blocks.h"

namespace semisparse::dwconv {
namespace {

constexpr size_t kGroup = 4;
constexpr size_t kMostPositions = 256;

// What a class says of taps that are anywhere. A position has kTaps of them, or with 0 any number.
template <size_t kTaps>
class Anywhere {
 public:
  static constexpr bool kSteps = false;
  static constexpr std::ptrdiff_t column = 0;

  explicit Anywhere(size_t taps) : taps_(kTaps != 0 ? kTaps : taps) {}
  size_t count() const { return kTaps != 0 ? kTaps : taps_; }

 protected:
  // Whether the second position's taps are the first one's but for one column.
  template <size_t K, typename Place>
  bool are_beside(const Place* here) const {
    const Place* there = here + count();
    bool same = true;
    for (size_t t = 0; t < count(); t += K) {
      for (size_t k = 0; k + 1 < K; ++k) same &= here[t + k + 1] == there[t + k];
    }
    return same;
  }

 private:
  const size_t taps_;
};

// A strip's list.
template <size_t kTaps>
class Listed : public Anywhere<kTaps> {
 public:
  explicit Listed(const Strip& s) : Anywhere<kTaps>(s.height * s.width), x_(s.x), taps_(s.taps) {}
  const float* operator()(size_t i, size_t t) const { return x_ + taps_[i * this->count() + t]; }
  template <size_t K>
  bool adjoin(size_t i) const {
    return this->template are_beside<K>(taps_ + i * this->count());
  }

 private:
  const float* x_;
  const uint32_t* taps_;
};

// Where sums go.
struct Output {
  explicit Output(const Strip& s)
      : dests(s.dests), y(s.y), residual(s.residual), ldy(s.ldy), lo(s.lo), hi(s.hi) {}

  const uint32_t* dests;
  float* y;
  const float* residual;
  size_t ldy;
  float lo, hi;
};

// Read once for each group: a vector store may alias anything, so every store of a group would have
// the fields read again, and the limits, computed ahead of the loop over groups, would take two
// registers of 16 from the sums.
inline Output read_anew(const Output* out) {
  asm("" : "+r"(out));
  return *out;
}

// What follows the sums of P positions from the ith on.
template <size_t P, size_t NV, bool kWhole>
inline void finish_group(const Output out, size_t i, size_t c, Lanes<kWhole> lanes,
                         const Vec::T (&acc)[P][NV]) {
  const Vec::T lo = Vec::set1(out.lo);
  const Vec::T hi = Vec::set1(out.hi);
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) {
    const size_t at = out.dests[i + p] * out.ldy + c;
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) {
      Vec::T value = acc[p][v];
      if (out.residual != nullptr) {
        value = Vec::add(value, lanes.template load<NV>(out.residual + at, v));
      }
      lanes.template store<NV>(out.y + at, v, Vec::clamp(value, lo, hi));
    }
  }
}

// Positions anywhere.
template <size_t P, size_t NV, typename Taps, bool kWhole>
inline void apart(const Strip& s, const Output& out, const Taps& taps, size_t i, size_t c,
                  Lanes<kWhole> lanes) {
  constexpr size_t kLanes = Vec::kLanes;
  const size_t count = taps.count();
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  const float* weights = weights_of(s, c);
  for (size_t t = 0; t < count; ++t, weights += kBlock) {
    Vec::T w[NV];
#pragma GCC unroll 4
    for (size_t v = 0; v < NV; ++v) w[v] = Vec::load(weights + v * kLanes);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) {
      const float* x = taps(i + p, t) + c;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        acc[p][v] = Vec::fma(lanes.template load<NV>(x, v), w[v], acc[p][v]);
      }
    }
  }
  finish_group<P, NV>(read_anew(&out), i, c, lanes, acc);
}

// Neighbours: each column of inputs is loaded once for all of them.
template <size_t K, size_t NV, typename Taps, bool kWhole>
inline void adjoining(const Strip& s, const Output& out, const Taps& taps, size_t i, size_t c,
                      Lanes<kWhole> lanes) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t P = kGroup;
  const size_t count = taps.count();
  const std::ptrdiff_t column = taps.column;
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  const float* weights = weights_of(s, c);
  for (size_t t = 0; t < count; t += K) {
    Vec::T w[K][NV];
#pragma GCC unroll 8
    for (size_t k = 0; k < K; ++k, weights += kBlock) {
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) w[k][v] = Vec::load(weights + v * kLanes);
    }
    const float* row = taps(i, t);
#pragma GCC unroll 16
    for (size_t j = 0; j < P + K - 1; ++j) {
      const size_t last = j < K ? 0 : j - K + 1;
      const float* x = Taps::kSteps ? row + static_cast<std::ptrdiff_t>(j) * column
                                    : taps(i + last, t + j - last);
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
  finish_group<P, NV>(read_anew(&out), i, c, lanes, acc);
}

// K is the number of columns where neighbours are worth a way of their own, else 0. It has its own
// copy of where the taps are: a vector store may alias anything.
template <size_t K, typename Taps>
void in_groups(const Strip& s, const Taps taps) {
  const Output out(s);
  bool together[kMostPositions / kGroup] = {};
  if constexpr (K != 0) {
    for (size_t g = 0; (g + 1) * kGroup <= s.m; ++g) {
      together[g] = true;
      for (size_t p = 0; p + 1 < kGroup; ++p) {
        together[g] = together[g] && taps.template adjoin<K>(g * kGroup + p);
      }
    }
  }
  all_channels(s, [&](auto vectors, size_t c, auto lanes) {
    constexpr size_t NV = decltype(vectors)::kCount;
    size_t i = 0;
    for (; i + kGroup <= s.m; i += kGroup) {
      if constexpr (K != 0) {
        if (together[i / kGroup]) {
          adjoining<K, NV>(s, out, taps, i, c, lanes);
          continue;
        }
      }
      apart<kGroup, NV>(s, out, taps, i, c, lanes);
    }
    for (; i < s.m; ++i) apart<1, NV>(s, out, taps, i, c, lanes);
  });
}

// The same with taps by a class as those above. A number of them that is known was faster with 3x3,
// and slower with 5x5, which it made the compiler unroll.
template <size_t K, template <size_t> class Taps, typename... Places>
void in_groups_anywhere(const Strip& s, Places... places) {
  if constexpr (K == 3) {
    if (s.height == 3) return in_groups<K>(s, Taps<9>(s, places...));
  }
  in_groups<K>(s, Taps<0>(s, places...));
}

template <size_t K>
struct Width {
  static constexpr size_t kCount = K;
};

// Calls f(Width<K>) with the filter's width where neighbours have a way of their own, else
// with 0.
template <typename F>
void by_width(const Strip& s, const F& f) {
  switch (s.width) {
    case 3:
      return f(Width<3>{});
    case 5:
      return f(Width<5>{});
    case 7:
      return f(Width<7>{});
    default:
      return f(Width<0>{});
  }
}

// A strip that says where each tap reads.
void run_listed(const Strip& strip) {
  by_width(strip, [&](auto width) {
    constexpr size_t K = decltype(width)::kCount;
    in_parts(strip, kMostPositions, [](const Strip& s) { in_groups_anywhere<K, Listed>(s); });
  });
}

}  // namespace
}  // namespace semisparse::dwconv
