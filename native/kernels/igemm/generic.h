// The indirect-GEMM kernel over any vector type: rows in blocks of up to `mr`. An instruction-set
// file includes its kernels/simd header, which defines Vec, then this, then names its instances
// with SEMISPARSE_IGEMM_DEFINE.
#pragma once

#include "kernels/igemm/igemm.h"

namespace semisparse::igemm {
namespace {

constexpr size_t kLineFloats = 16;

// A panel is NV vectors and a tail, which is a narrower vector or this, nothing.
struct NoTail {
  struct T {};
  static constexpr size_t kLanes = 0;
  static T load(const float*) { return {}; }
  static void store(float*, T) {}
  static T set1(float) { return {}; }
  static T fma(T, T, T) { return {}; }
};

// Where results go; read once, since a vector store may alias anything.
struct Output {
  explicit Output(const Tile& tile)
      : y(tile.y), residual(tile.residual), ldy(tile.ldy), n(tile.n), lo(tile.lo), hi(tile.hi) {}

  float* y;
  const float* residual;
  size_t ldy, n;
  float lo, hi;
};

template <typename V>
inline void finish_vector(const Output& out, typename V::T value, size_t at, bool whole,
                          size_t last) {
  if (out.residual != nullptr) {
    const float* from = out.residual + at;
    value = V::add(value, whole ? V::load(from) : V::load_first(from, last));
  }
  value = V::clamp(value, V::set1(out.lo), V::set1(out.hi));
  if (whole) {
    V::store(out.y + at, value);
  } else {
    V::store_first(out.y + at, value, last);
  }
}

// What a finish needs is read anew for each block. Computed ahead of the loop over blocks, the
// limits and the mask of the last vector would take registers, of 16, from the products in between.
inline Output read_anew(const Output* out) {
  asm("" : "+r"(out));
  return *out;
}

template <size_t M, size_t NV, typename Tail, bool kWhole>
void finish(const Output& out, const uint32_t* dests, const Vec::T (&acc)[M][NV],
            const typename Tail::T (&tail)[M]) {
  constexpr bool kHasTail = Tail::kLanes != 0;
  // Lanes of the tail, or of the last vector, where it is not whole.
  const size_t last = out.n - (kHasTail ? NV : NV - 1) * Vec::kLanes;
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const size_t at = dests[i] * out.ldy;
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const bool whole = kWhole || kHasTail || v + 1 < NV;
      finish_vector<Vec>(out, acc[i][v], at + v * Vec::kLanes, whole, last);
    }
    if constexpr (kHasTail) {
      finish_vector<Tail>(out, tail[i], at + NV * Vec::kLanes, kWhole, last);
    }
  }
}

// acc[i][v] += a[i][K] * w[v] for vectors a of four inputs. `b` is w[0] and becomes what follows
// these weights, each vector loaded while the one before it is in use. V is Vec; as a parameter it
// may lack accumulate_lane where kFmaByLane says so.
template <typename V, int K, size_t M, size_t NV>
inline void lane_step(typename V::T (&acc)[M][NV], const typename V::T (&a)[M], typename V::T& b,
                      const float* w) {
#pragma GCC unroll 8
  for (size_t v = 0; v < NV; ++v) {
    typename V::T next = b;
    if (K < 3 || v + 1 < NV) next = V::load_here(w + (v + 1) * Vec::kLanes);
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) V::template accumulate_lane<K>(acc[i][v], b, a[i]);
    b = next;
  }
}

// acc[i][v] += row[i][c + k] * w[k][v] for k from 0 to 3.
template <typename V, size_t M, size_t NV>
inline void by_lane(typename V::T (&acc)[M][NV], const float* const (&row)[M], size_t c,
                    const float* w) {
  constexpr size_t kPanel = NV * Vec::kLanes;
  typename V::T b = V::load_here(w);
  typename V::T a[M];
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) a[i] = V::load_here(row[i] + c);
  lane_step<V, 0>(acc, a, b, w);
  lane_step<V, 1>(acc, a, b, w + kPanel);
  lane_step<V, 2>(acc, a, b, w + 2 * kPanel);
  lane_step<V, 3>(acc, a, b, w + 3 * kPanel);
}

// acc[i][v] += row[i][c] * w[v] for one c, and so the tail. Of inputs and weights the fewer are
// held in registers and the others pass through one.
template <typename Tail, size_t M, size_t NV>
inline void step(Vec::T (&acc)[M][NV], typename Tail::T (&tail)[M], const float* const (&row)[M],
                 size_t c, const float* w) {
  if constexpr (M < NV && Tail::kLanes == 0) {
    Vec::T a[M];
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) a[i] = Vec::set1(row[i][c]);
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const Vec::T b = Vec::load(w + v * Vec::kLanes);
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) Vec::accumulate(acc[i][v], b, a[i]);
    }
  } else {
    Vec::T b[NV];
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) b[v] = Vec::load(w + v * Vec::kLanes);
    const typename Tail::T b_tail = Tail::load(w + NV * Vec::kLanes);
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
      const Vec::T a = Vec::set1(row[i][c]);
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) Vec::accumulate(acc[i][v], b[v], a);
      tail[i] = Tail::fma(b_tail, Tail::set1(row[i][c]), tail[i]);
    }
  }
}

// The same for c to c + 3. Taking four at a time gave 90 to 97% of the FMA peak instead of 85%.
template <typename Tail, size_t M, size_t NV>
inline void four_steps(Vec::T (&acc)[M][NV], typename Tail::T (&tail)[M],
                       const float* const (&row)[M], size_t c, const float* w) {
  constexpr size_t kPanel = NV * Vec::kLanes + Tail::kLanes;
  if constexpr (Vec::kFmaByLane) {
    static_assert(Tail::kLanes == 0, "panels of these vectors have no tail");
    by_lane<Vec>(acc, row, c, w);
  } else {
    step<Tail>(acc, tail, row, c, w);
    step<Tail>(acc, tail, row, c + 1, w + kPanel);
    step<Tail>(acc, tail, row, c + 2, w + 2 * kPanel);
    step<Tail>(acc, tail, row, c + 3, w + 3 * kPanel);
  }
}

template <size_t M, size_t NV, typename Tail>
inline void start(const float* init, size_t stride, Vec::T (&acc)[M][NV],
                  typename Tail::T (&tail)[M]) {
  constexpr size_t kLanes = Vec::kLanes;
  if (stride == 0) {
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const Vec::T same = Vec::load(init + v * kLanes);
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) acc[i][v] = same;
    }
    const typename Tail::T same = Tail::load(init + NV * kLanes);
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) tail[i] = same;
  } else {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
      const float* from = init + i * stride;
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) acc[i][v] = Vec::load(from + v * kLanes);
      tail[i] = Tail::load(from + NV * kLanes);
    }
  }
}

template <size_t M, size_t NV>
inline void fetch(const Tile& tile, const uint32_t* dests, bool residual) {
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const size_t offset = dests[i] * tile.ldy;
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; v += kLineFloats / Vec::kLanes) {
      if (tile.fetch_y) __builtin_prefetch(tile.y + offset + v * Vec::kLanes, 1, 3);
      if (residual) __builtin_prefetch(tile.residual + offset + v * Vec::kLanes, 0, 3);
    }
  }
}

// `count` blocks of M rows from row `first` on, the first of them the call's block `index`. The
// blocks are a loop in here because what a call costs is not hidden behind the products: at 48
// channels, 105 cycles a block by calls of one and 50 in the loop (EPYC, Zen 4), where the products
// of 16 inputs take 384.
template <size_t M, size_t NV, typename Tail>
void blocks(const Tile& tile, size_t first, size_t index, size_t count) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t kPanel = NV * kLanes + Tail::kLanes;
  const Output out(tile);
  const size_t taps = tile.taps;
  const size_t channels = tile.channels;
  const std::ptrdiff_t* offsets = tile.offsets;
  const size_t tap_step = offsets == nullptr ? tile.m : 0;
  const size_t lines = tile.prefetch_lines;
  const float* prefetch = tile.prefetch + index * taps * (channels / 4) * lines * kLineFloats;
  // The residual was written layers ago, so its lines are on their way while the product is
  // computed.
  const bool fetch_residual = out.residual != nullptr && tile.park == nullptr;
  for (const size_t end = first + count * M; first < end; first += M) {
    Vec::T acc[M][NV];
    typename Tail::T tail[M];
    start<M, NV, Tail>(tile.init + first * tile.init_stride, tile.init_stride, acc, tail);
    const uint32_t* dests = tile.dests + first;
    if (tile.fetch_y || fetch_residual) fetch<M, NV>(tile, dests, fetch_residual);

    const float* w = tile.weights;
    const float* const* rows = tile.rows + first;
    for (size_t t = 0; t < taps; ++t, rows += tap_step) {
      const std::ptrdiff_t offset = offsets == nullptr ? 0 : offsets[t];
      const float* row[M];
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) row[i] = rows[i] + offset + tile.row_offset;
      size_t c = 0;
      for (; c + 4 <= channels; c += 4, w += 4 * kPanel) {
        four_steps<Tail>(acc, tail, row, c, w);
        for (size_t line = 0; line < lines; ++line, prefetch += kLineFloats) {
          if (tile.prefetch_far) {
            __builtin_prefetch(prefetch, 0, 2);
          } else {
            __builtin_prefetch(prefetch, 0, 3);
          }
        }
      }
      for (; c < channels; ++c, w += kPanel) step<Tail>(acc, tail, row, c, w);
    }

    if (tile.park != nullptr) {
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) {
        float* park = tile.park + (first + i) * kPanel;
#pragma GCC unroll 8
        for (size_t v = 0; v < NV; ++v) Vec::store(park + v * kLanes, acc[i][v]);
        Tail::store(park + NV * kLanes, tail[i]);
      }
    } else if (out.n == kPanel) {
      finish<M, NV, Tail, true>(read_anew(&out), dests, acc, tail);
    } else {
      finish<M, NV, Tail, false>(read_anew(&out), dests, acc, tail);
    }
  }
}

template <size_t MR, size_t NV, typename Tail>
void blocks_of(size_t height, const Tile& tile, size_t first, size_t index, size_t count) {
  if constexpr (MR > 1) {
    if (height < MR) return blocks_of<MR - 1, NV, Tail>(height, tile, first, index, count);
  }
  blocks<MR, NV, Tail>(tile, first, index, count);
}

// Blocks of equal height: 49 rows are four of 6 and five of 5, not eight of 6 and one of 1.
template <size_t MR, size_t NV, typename Tail>
void run(const Tile& tile) {
  const size_t count = (tile.m + MR - 1) / MR;
  const size_t height = tile.m / count;
  const size_t taller = tile.m - height * count;
  if (taller > 0) blocks_of<MR, NV, Tail>(height + 1, tile, 0, 0, taller);
  blocks_of<MR, NV, Tail>(height, tile, taller * (height + 1), taller, count - taller);
}

}  // namespace
}  // namespace semisparse::igemm

#define SEMISPARSE_IGEMM_DEFINE_TAIL(isa, mr, nr, Tail)                          \
  namespace semisparse::igemm {                                                  \
  void igemm_##isa##_##mr##x##nr(const Tile& tile) {                             \
    static_assert(nr % Vec::kLanes == Tail::kLanes, "panels are whole vectors"); \
    run<mr, nr / Vec::kLanes, Tail>(tile);                                       \
  }                                                                              \
  }
#define SEMISPARSE_IGEMM_DEFINE(isa, mr, nr) SEMISPARSE_IGEMM_DEFINE_TAIL(isa, mr, nr, NoTail)
