// The depthwise kernel for 32 registers of 16 lanes and more; used as kernels/igemm/generic.h is.
//
// Positions are taken a few at a time, so that a weight is loaded once for all of them and there
// are enough sums to keep the multipliers busy; first of all neighbours, which share their columns
// of inputs. What goes with what is found once for all channels. Taps outside of the plane are left
// out row by row, and of neighbours column by column.
#pragma once

#include "kernels/dwconv/tapped.h"

namespace semisparse::dwconv {
namespace {

// What is computed together, in the order of the strip, so that rows which are still in the
// first-level cache are met again.
class Plan {
 public:
  // Neighbours, `apart` columns from one to the next; or positions anywhere, where that is 0, and
  // inside: all of whose taps are.
  struct Group {
    uint16_t at[kGroup];
    uint8_t count, apart;
    bool inside;
  };

  // neighbours: whether those have a way of their own.
  Plan(const Strip& s, bool neighbours) {
    uint16_t single[kGroup];
    size_t singles = 0;
    for (size_t i = 0; i < s.m;) {
      const size_t apart = neighbours ? columns_to_next(s, i) : 0;
      size_t end = i + 1;
      if (apart != 0) {
        do {
          ++end;
        } while (columns_to_next(s, end - 1) == apart);
      }
      if (end - i > 1) {
        add_neighbours(i, end, apart);
      } else {
        single[singles++] = static_cast<uint16_t>(i);
        if (singles == kGroup) {
          add_singles(s, single, kGroup);
          singles = 0;
        }
      }
      i = end;
    }
    if (singles >= 2) add_singles(s, single, 2);
    if (singles % 2 != 0) add_singles(s, single + singles - 1, 1);
  }

  const Group* begin() const { return groups_; }
  const Group* end() const { return groups_ + count_; }

 private:
  // How many columns beside position i the next one reads, 1 or 2; 0 where it is elsewhere.
  static size_t columns_to_next(const Strip& s, size_t i) {
    if (i + 1 >= s.m) return 0;
    const std::ptrdiff_t step = s.rows[i + 1] - s.rows[i];
    const size_t apart = step == s.column_step ? 1 : step == 2 * s.column_step ? 2 : 0;
    if (apart == 0 || s.windows == nullptr) return apart;
    const Window& here = s.windows[i];
    const Window& next = s.windows[i + 1];
    const auto columns = static_cast<uint32_t>(s.width);
    const auto shift = static_cast<uint32_t>(apart);
    const bool fits =
        here.top == next.top && here.bottom == next.bottom &&
        next.left == (here.left > shift ? here.left - shift : 0) &&
        (here.right < columns ? next.right + shift == here.right : next.right + shift >= columns);
    return fits ? apart : 0;
  }

  // Of positions [begin, end), at least two of each: three and three rather than four and two.
  void add_neighbours(size_t begin, size_t end, size_t apart) {
    const size_t groups = (end - begin + kGroup - 1) / kGroup;
    for (size_t g = 0; g < groups; ++g) {
      const size_t first = begin + (end - begin) * g / groups;
      Group& group = groups_[count_++];
      group.at[0] = static_cast<uint16_t>(first);
      group.count = static_cast<uint8_t>(begin + (end - begin) * (g + 1) / groups - first);
      group.apart = static_cast<uint8_t>(apart);
    }
  }

  void add_singles(const Strip& s, const uint16_t* at, size_t count) {
    Group& group = groups_[count_++];
    group.count = static_cast<uint8_t>(count);
    group.apart = 0;
    group.inside = true;
    for (size_t p = 0; p < count; ++p) {
      group.at[p] = at[p];
      group.inside = group.inside && is_inside(s, at[p]);
    }
  }

  Group groups_[kMostPositions];
  size_t count_ = 0;
};

// P neighbours, kApart columns from one to the next: each column is loaded once for all of them.
template <size_t K, size_t P, size_t kApart, size_t NV, bool kWhole>
inline void neighbours(const Strip& s, size_t i, size_t c, Lanes<kWhole> lanes, Vec::T lo,
                       Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t kColumns = (P - 1) * kApart + K;
  size_t top = 0;
  size_t bottom = s.height;
  uint32_t inside = (uint32_t{1} << kColumns) - 1;  // a bit for each column
  if (s.windows != nullptr) {
    top = s.windows[i].top;
    bottom = s.windows[i].bottom;
    const size_t right = s.windows[i + P - 1].right + (P - 1) * kApart;
    inside = (uint32_t{1} << right) - (uint32_t{1} << s.windows[i].left);
  }
  const std::ptrdiff_t column = s.column_step;
  const float* row = s.rows[i] + static_cast<std::ptrdiff_t>(top) * s.row_step + c;
  const float* weights = weights_of(s, c) + top * K * kBlock;
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  for (size_t ky = top; ky < bottom; ++ky, row += s.row_step) {
    Vec::T w[K][NV];
#pragma GCC unroll 8
    for (size_t k = 0; k < K; ++k, weights += kBlock) {
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) w[k][v] = Vec::load(weights + v * kLanes);
    }
#pragma GCC unroll 16
    for (size_t j = 0; j < kColumns; ++j) {
      if ((inside >> j & 1) == 0) continue;
      const float* x = row + static_cast<std::ptrdiff_t>(j) * column;
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) {
        const Vec::T in = lanes.template load<NV>(x, v);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; ++p) {
          if (j < p * kApart || j - p * kApart >= K) continue;
          acc[p][v] = Vec::fma(in, w[j - p * kApart][v], acc[p][v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, i + p, c, lanes, acc[p], lo, hi);
}

// The columns of a filter's row that lie inside the plane. Where their number is known, the
// compiler tests a bit for each; comparisons took more registers than there are.
template <size_t K>
struct Columns {
  void set(const Window& w, size_t ky) {
    const bool row = ky >= w.top && ky < w.bottom;
    bits = row ? (uint32_t{1} << w.right) - (uint32_t{1} << w.left) : 0;
  }
  bool has(size_t kx) const { return (bits >> kx & 1) != 0; }
  uint32_t bits = 0;
};

template <>
struct Columns<0> {
  void set(const Window& w, size_t ky) {
    left = w.left;
    count = ky >= w.top && ky < w.bottom ? w.right - w.left : 0;
  }
  bool has(size_t kx) const { return kx - left < count; }
  size_t left = 0, count = 0;
};

// P positions anywhere, `at` in the strip. K is the filter's width, or 0 for any.
template <size_t K, size_t P, bool kAllInside, size_t NV, bool kWhole>
inline void anywhere(const Strip& s, const uint16_t* at, size_t c, Lanes<kWhole> lanes, Vec::T lo,
                     Vec::T hi) {
  constexpr size_t kLanes = Vec::kLanes;
  const size_t width = s.width;
  size_t top = 0;
  size_t bottom = s.height;
  if (!kAllInside) {
    top = s.height;
    bottom = 0;
    for (size_t p = 0; p < P; ++p) {
      top = s.windows[at[p]].top < top ? s.windows[at[p]].top : top;
      bottom = s.windows[at[p]].bottom > bottom ? s.windows[at[p]].bottom : bottom;
    }
  }
  const float* zeros = kAllInside ? nullptr : s.zeros + c;
  const float* rows[P];
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) {
    rows[p] = s.rows[at[p]] + static_cast<std::ptrdiff_t>(top) * s.row_step + c;
  }
  const float* weights = weights_of(s, c) + top * width * kBlock;
  Vec::T acc[P][NV];
  start<P, NV>(s, c, acc);
  for (size_t ky = top; ky < bottom; ++ky) {
    Columns<K> inside[P];
    if (!kAllInside) {
#pragma GCC unroll 8
      for (size_t p = 0; p < P; ++p) inside[p].set(s.windows[at[p]], ky);
    }
    std::ptrdiff_t beside = 0;
    for (size_t kx = 0; kx < width; ++kx, weights += kBlock, beside += s.column_step) {
      Vec::T w[NV];
#pragma GCC unroll 4
      for (size_t v = 0; v < NV; ++v) w[v] = Vec::load(weights + v * kLanes);
#pragma GCC unroll 8
      for (size_t p = 0; p < P; ++p) {
        const float* x = rows[p] + beside;
        if (!kAllInside) x = inside[p].has(kx) ? x : zeros;
#pragma GCC unroll 4
        for (size_t v = 0; v < NV; ++v) {
          acc[p][v] = Vec::fma(lanes.template load<NV>(x, v), w[v], acc[p][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) rows[p] += s.row_step;
  }
#pragma GCC unroll 8
  for (size_t p = 0; p < P; ++p) finish<NV>(s, at[p], c, lanes, acc[p], lo, hi);
}

// A 3x3 filter whose nine weights stay in registers over all positions. It has its own copy of the
// strip: a vector store may alias anything, so through a reference every field would be read again
// behind each (3 to 10% slower).
template <bool kAllInside, size_t NV, bool kWhole>
void by_position_3x3(const Strip s, size_t c, Lanes<kWhole> lanes) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  const std::ptrdiff_t column = s.column_step;
  const std::ptrdiff_t step = s.row_step;
  const float* weights = weights_of(s, c);
  Vec::T bias[NV];
  Vec::T w[9][NV];
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    bias[v] = Vec::load(s.bias + c + v * kLanes);
#pragma GCC unroll 16
    for (size_t t = 0; t < 9; ++t) w[t][v] = Vec::load(weights + t * kBlock + v * kLanes);
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
    const float* row = s.rows[i] + c;
    if (kAllInside || is_inside(s, i)) {
#pragma GCC unroll 3
      for (size_t ky = 0; ky < 3; ++ky, row += step) {
#pragma GCC unroll 3
        for (size_t kx = 0; kx < 3; ++kx) {
          const float* x = row + static_cast<std::ptrdiff_t>(kx) * column;
#pragma GCC unroll 4
          for (size_t v = 0; v < NV; ++v) {
            acc[v] = Vec::fma(lanes.template load<NV>(x, v), w[3 * ky + kx][v], acc[v]);
          }
        }
      }
    } else {
      const Window& window = s.windows[i];
#pragma GCC unroll 3
      for (size_t ky = 0; ky < 3; ++ky, row += step) {
        const bool inside = ky >= window.top && ky < window.bottom;
#pragma GCC unroll 3
        for (size_t kx = 0; kx < 3; ++kx) {
          const float* x = row + static_cast<std::ptrdiff_t>(kx) * column;
          x = inside && kx >= window.left && kx < window.right ? x : s.zeros + c;
#pragma GCC unroll 4
          for (size_t v = 0; v < NV; ++v) {
            acc[v] = Vec::fma(lanes.template load<NV>(x, v), w[3 * ky + kx][v], acc[v]);
          }
        }
      }
    }
    finish<NV>(s, i, c, lanes, acc, lo, hi);
  }
}

void by_position_3x3(const Strip& s) {
  all_channels(s, [&](auto vectors, size_t c, auto lanes) {
    constexpr size_t NV = decltype(vectors)::kCount;
    s.windows == nullptr ? by_position_3x3<true, NV>(s, c, lanes)
                         : by_position_3x3<false, NV>(s, c, lanes);
  });
}

template <size_t K, size_t P, size_t NV, bool kWhole>
inline void compute(const Strip& s, const Plan::Group& group, size_t c, Lanes<kWhole> lanes,
                    Vec::T lo, Vec::T hi) {
  if constexpr (K != 0 && P != 1) {
    if (group.apart == 1) return neighbours<K, P, 1, NV>(s, group.at[0], c, lanes, lo, hi);
    if (group.apart == 2) return neighbours<K, P, 2, NV>(s, group.at[0], c, lanes, lo, hi);
  }
  if constexpr (P != 3) {
    group.inside ? anywhere<K, P, true, NV>(s, group.at, c, lanes, lo, hi)
                 : anywhere<K, P, false, NV>(s, group.at, c, lanes, lo, hi);
  }
}

// A filter K columns wide, where neighbours have a way of their own, or with K of 0 any other.
template <size_t K>
void in_planned_groups(const Strip& s) {
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  const Plan plan(s, K != 0);
  all_channels(s, [&](auto vectors, size_t c, auto lanes) {
    constexpr size_t NV = decltype(vectors)::kCount;
    for (const Plan::Group& group : plan) {
      switch (group.count) {
        case 4:
          compute<K, 4, NV>(s, group, c, lanes, lo, hi);
          break;
        case 3:
          compute<K, 3, NV>(s, group, c, lanes, lo, hi);
          break;
        case 2:
          compute<K, 2, NV>(s, group, c, lanes, lo, hi);
          break;
        default:
          compute<K, 1, NV>(s, group, c, lanes, lo, hi);
      }
    }
  });
}

void run_part(const Strip& s) {
  if (s.width == 3 && s.height == 3) {
    by_position_3x3(s);
  } else if (s.width == 5) {
    in_planned_groups<5>(s);
  } else if (s.width == 7) {
    in_planned_groups<7>(s);
  } else {
    in_planned_groups<0>(s);
  }
}

void run(const Strip& strip) {
  strip.taps != nullptr ? run_listed(strip) : in_parts(strip, kMostPositions, run_part);
}

}  // namespace
}  // namespace semisparse::dwconv
