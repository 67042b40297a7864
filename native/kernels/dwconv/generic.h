// The depthwise kernel over any vector type; used as kernels/igemm/generic.h is.
//
// The taps of positions at an edge are found once for all channels. Leaving out those beyond it, as
// wide.h does, was slower on AVX2 (3x3 and 5x5 at 14x14 and 7x7 by a quarter; EPYC, Zen 4).
#pragma once

#include "kernels/dwconv/tapped.h"

namespace semisparse::dwconv {
namespace {

constexpr size_t kMostTaps = 256;
constexpr size_t kTable = 2048;  // pointers; at least kGroup positions of kMostTaps

// Where the taps of positions lie that are all inside.
class Offsets {
 public:
  static constexpr bool kSteps = true;  // from column to column

  Offsets(const float* const* rows, const std::ptrdiff_t* offsets, size_t taps,
          std::ptrdiff_t column_step)
      : column(column_step), rows_(rows), offsets_(offsets), taps_(taps) {}
  size_t count() const { return taps_; }
  const float* operator()(size_t i, size_t t) const { return rows_[i] + offsets_[t]; }

  // Whether the taps of position i + 1 are those of position i but for one column.
  template <size_t K>
  bool adjoin(size_t i) const {
    return rows_[i + 1] - rows_[i] == column;
  }

  const std::ptrdiff_t column;

 private:
  const float* const* rows_;
  const std::ptrdiff_t* offsets_;
  const size_t taps_;
};

class Insides {
 public:
  explicit Insides(const Strip& s) {
    std::ptrdiff_t* to = offsets_;
    for (size_t ky = 0; ky < s.height; ++ky) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(ky) * s.row_step;
      for (size_t kx = 0; kx < s.width; ++kx) {
        *to++ = row + static_cast<std::ptrdiff_t>(kx) * s.column_step;
      }
    }
  }
  Offsets find(const Strip& s) const {
    return {s.rows, offsets_, s.height * s.width, s.column_step};
  }

 private:
  std::ptrdiff_t offsets_[kMostTaps];
};

// A pointer for each tap of each position.
template <size_t kTaps>
class Pointers : public Anywhere<kTaps> {
 public:
  Pointers(const Strip& s, const float* const* pointers)
      : Anywhere<kTaps>(s.height * s.width), pointers_(pointers) {}
  const float* operator()(size_t i, size_t t) const { return pointers_[i * this->count() + t]; }
  template <size_t K>
  bool adjoin(size_t i) const {
    return this->template are_beside<K>(pointers_ + i * this->count());
  }

 private:
  const float* const* pointers_;
};

// Where those of others lie, and zeros where they are outside.
class Edges {
 public:
  explicit Edges(const Strip& s) : insides_(s) {}

  const float* const* find(const Strip& s) {
    const size_t taps = s.height * s.width;
    const Offsets inside = insides_.find(s);
    const float** to = table_;
    for (size_t i = 0; i < s.m; ++i, to += taps) {
      if (is_inside(s, i)) {
        for (size_t t = 0; t < taps; ++t) to[t] = inside(i, t);
      } else {
        find_edge(s, i, to);
      }
    }
    return table_;
  }

 private:
  static void find_edge(const Strip& s, size_t i, const float** to) {
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

  Insides insides_;
  const float* table_[kTable];
};

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
void in_place(const Strip& s) {
  const size_t taps = s.height * s.width;
  if (taps > kMostTaps) {
    one_by_one(s);
  } else if (s.windows == nullptr) {
    const Insides insides(s);
    in_parts(s, kMostPositions, [&](const Strip& part) { in_groups<K>(part, insides.find(part)); });
  } else {
    Edges edges(s);
    const size_t most = kTable / taps;
    in_parts(s, most < kMostPositions ? most : kMostPositions,
             [&](const Strip& part) { in_groups_anywhere<K, Pointers>(part, edges.find(part)); });
  }
}

void run(const Strip& s) {
  if (s.taps != nullptr) return run_listed(s);
  by_width(s, [&](auto width) { in_place<decltype(width)::kCount>(s); });
}

}  // namespace
}  // namespace semisparse::dwconv
