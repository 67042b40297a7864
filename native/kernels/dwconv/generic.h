// The depthwise kernel over any vector type; used as kernels/igemm/generic.h is.
//
// Positions are taken in groups, so that a weight is loaded once for all of them: 5x5 and 7x7 are
// 1.6 to 1.9 times as fast as with weights read again for each position (at 0.3 1.4 to 1.6), and on
// AVX2 3x3 1.04 to 1.19 times (EPYC, Zen 4). Groups of 3, 6 and 8 and single vectors of channels
// were slower on AVX2; so was leaving out the taps beyond the edges as wide.h does (3x3 and 5x5 at
// 14x14 and 7x7 by a quarter), where the table below finds every tap once for all channels.
#pragma once

#include "kernels/dwconv/blocks.h"

namespace semisparse::dwconv {
namespace {

constexpr size_t kGroup = 4;
constexpr size_t kMostTaps = 256;
constexpr size_t kMostPositions = 256;
constexpr size_t kTable = 2048;  // pointers; at least kGroup positions of kMostTaps

// Where the taps of positions lie that are all inside.
class Offsets {
 public:
  static constexpr bool kSteps = true;  // from column to column

  explicit Offsets(const Strip& s) : column(s.column_step) {
    std::ptrdiff_t* to = offsets_;
    for (size_t ky = 0; ky < s.height; ++ky) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(ky) * s.row_step;
      for (size_t kx = 0; kx < s.width; ++kx) {
        *to++ = row + static_cast<std::ptrdiff_t>(kx) * s.column_step;
      }
    }
  }
  void find(const Strip& s) { rows_ = s.rows; }
  const float* operator()(size_t i, size_t t) const { return rows_[i] + offsets_[t]; }

  // Whether the taps of position i + 1 are those of position i but for one column.
  template <size_t K>
  bool adjoin(size_t i) const {
    return rows_[i + 1] - rows_[i] == column;
  }

  const std::ptrdiff_t column;

 private:
  const float* const* rows_ = nullptr;
  std::ptrdiff_t offsets_[kMostTaps];
};

// Where those of others lie, and zeros where they are outside.
class Table {
 public:
  static constexpr bool kSteps = false;
  static constexpr std::ptrdiff_t column = 0;

  explicit Table(const Strip& s) : taps_(s.height * s.width) {}
  void find(const Strip& s) {
    const float** to = table_;
    for (size_t i = 0; i < s.m; ++i) {
      const Window& w = s.windows[i];
      const float* row = s.rows[i];
      for (size_t ky = 0; ky < s.height; ++ky, row += s.row_step) {
        const size_t count = ky >= w.top && ky < w.bottom ? w.right - w.left : 0;
        const float* from = row;
        for (size_t kx = 0; kx < s.width; ++kx, from += s.column_step) {
          *to++ = kx - w.left < count ? from : s.zeros;  // unsigned, so that it sees both ends
        }
      }
    }
  }
  const float* operator()(size_t i, size_t t) const { return table_[i * taps_ + t]; }

  template <size_t K>
  bool adjoin(size_t i) const {
    const float* const* here = table_ + i * taps_;
    const float* const* there = here + taps_;
    bool same = true;
    for (size_t t = 0; t < taps_; t += K) {
      for (size_t k = 0; k + 1 < K; ++k) same &= here[t + k + 1] == there[t + k];
    }
    return same;
  }

 private:
  const size_t taps_;
  const float* table_[kTable];
};

// Positions anywhere.
template <size_t P, size_t NV, typename Taps, bool kWhole>
inline void apart(const Strip& s, const Taps& taps, size_t i, size_t c, Lanes<kWhole> lanes,
                  Vec::T lo, Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  const size_t count = s.height * s.width;
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
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, i + p, c, lanes, acc[p], lo, hi);
}

// Neighbours: each column of inputs is loaded once for all of them.
template <size_t K, size_t NV, typename Taps, bool kWhole>
inline void adjoining(const Strip& s, const Taps& taps, size_t i, size_t c, Lanes<kWhole> lanes,
                      Vec::T lo, Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t P = kGroup;
  const size_t count = s.height * K;
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
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, i + p, c, lanes, acc[p], lo, hi);
}

// K is the number of columns where neighbours are worth a way of their own, else 0.
template <size_t K, typename Taps>
void in_groups(const Strip& s, const Taps& taps) {
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
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
          adjoining<K, NV>(s, taps, i, c, lanes, lo, hi);
          continue;
        }
      }
      apart<kGroup, NV>(s, taps, i, c, lanes, lo, hi);
    }
    for (; i < s.m; ++i) apart<1, NV>(s, taps, i, c, lanes, lo, hi);
  });
}

template <size_t K, typename Taps>
void in_parts_with(const Strip& strip, size_t most) {
  Taps taps(strip);
  in_parts(strip, most, [&](const Strip& part) {
    taps.find(part);
    in_groups<K>(part, taps);
  });
}

// Filters of too many taps for a table, which are none of any network that we know.
void one_by_one(const Strip& s) {
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  const Window all{0, static_cast<uint32_t>(s.height), 0, static_cast<uint32_t>(s.width)};
  all_channels(s, [&](auto vectors, size_t c, auto lanes) {
    constexpr size_t NV = decltype(vectors)::kCount;
    for (size_t i = 0; i < s.m; ++i) {
      const Window& w = s.windows == nullptr ? all : s.windows[i];
      Vec::T acc[1][NV];
      start<1, NV>(s, c, acc);
      for (size_t ky = w.top; ky < w.bottom; ++ky) {
        for (size_t kx = w.left; kx < w.right; ++kx) {
          const float* weights = weights_of(s, c) + (ky * s.width + kx) * kBlock;
          const float* x = s.rows[i] + static_cast<std::ptrdiff_t>(ky) * s.row_step +
                           static_cast<std::ptrdiff_t>(kx) * s.column_step + c;
#pragma GCC unroll 4
          for (size_t v = 0; v < NV; ++v) {
            acc[0][v] = Vec::fma(lanes.template load<NV>(x, v),
                                 Vec::load(weights + v * Vec::kLanes), acc[0][v]);
          }
        }
      }
      finish<NV>(s, i, c, lanes, acc[0], lo, hi);
    }
  });
}

template <size_t K>
void by_width(const Strip& s) {
  const size_t taps = s.height * s.width;
  if (taps > kMostTaps) {
    one_by_one(s);
  } else if (s.windows == nullptr) {
    in_parts_with<K, Offsets>(s, kMostPositions);
  } else {
    const size_t most = kTable / taps;
    in_parts_with<K, Table>(s, most < kMostPositions ? most : kMostPositions);
  }
}

void run(const Strip& s) {
  switch (s.width) {
    case 3:
      return by_width<3>(s);
    case 5:
      return by_width<5>(s);
    case 7:
      return by_width<7>(s);
    default:
      return by_width<0>(s);
  }
}

}  // namespace
}  // namespace semisparse::dwconv
