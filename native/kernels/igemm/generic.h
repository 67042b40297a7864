// The indirect-GEMM kernel over any vector type. An instruction-set file includes its kernels/simd
// header, which defines Vec, then this, then names its instances with SEMISPARSE_IGEMM_DEFINE.
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

// Where one row's results go; read once, since a vector store may alias anything.
struct Output {
  explicit Output(const Tile& tile)
      : y(tile.y),
        residual(tile.residual),
        dests(tile.dests),
        ldy(tile.ldy),
        lo(tile.lo),
        hi(tile.hi) {}

  float* y;
  const float* residual;
  const uint32_t* dests;
  size_t ldy;
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

template <size_t M, size_t NV, typename Tail, bool kWhole>
void finish(const Tile& tile, const Vec::T (&acc)[M][NV], const typename Tail::T (&tail)[M]) {
  const Output out(tile);
  constexpr bool kHasTail = Tail::kLanes != 0;
  // Lanes of the tail, or of the last vector, where it is not whole.
  const size_t last = tile.n - (kHasTail ? NV : NV - 1) * Vec::kLanes;
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const size_t at = out.dests[i] * out.ldy;
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

// acc[i][v] += a[i][K] * w[v] for vectors a of four inputs. V is Vec; as a parameter it may lack
// fma_lane where kFmaByLane says so.
template <typename V, int K, size_t M, size_t NV>
inline void lane_step(typename V::T (&acc)[M][NV], const typename V::T (&a)[M], const float* w) {
#pragma GCC unroll 8
  for (size_t v = 0; v < NV; ++v) {
    const Vec::T b = Vec::load(w + v * Vec::kLanes);
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) acc[i][v] = V::template fma_lane<K>(b, a[i], acc[i][v]);
  }
}

// acc[i][v] += row[i][c] * w[v] for one c, and so the tail.
template <typename Tail, size_t M, size_t NV>
inline void step(Vec::T (&acc)[M][NV], typename Tail::T (&tail)[M], const float* const (&row)[M],
                 size_t c, const float* w) {
  Vec::T b[NV];
#pragma GCC unroll 8
  for (size_t v = 0; v < NV; ++v) b[v] = Vec::load(w + v * Vec::kLanes);
  const typename Tail::T b_tail = Tail::load(w + NV * Vec::kLanes);
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const Vec::T a = Vec::set1(row[i][c]);
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) acc[i][v] = Vec::fma(b[v], a, acc[i][v]);
    tail[i] = Tail::fma(b_tail, Tail::set1(row[i][c]), tail[i]);
  }
}

// The same for c to c + 3. Taking four at a time gave 90 to 97% of the FMA peak instead of 85%.
template <typename Tail, size_t M, size_t NV>
inline void four_steps(Vec::T (&acc)[M][NV], typename Tail::T (&tail)[M],
                       const float* const (&row)[M], size_t c, const float* w) {
  constexpr size_t kPanel = NV * Vec::kLanes + Tail::kLanes;
  if constexpr (Vec::kFmaByLane) {
    static_assert(Tail::kLanes == 0, "panels of these vectors have no tail");
    Vec::T a[M];
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) a[i] = Vec::load(row[i] + c);
    lane_step<Vec, 0>(acc, a, w);
    lane_step<Vec, 1>(acc, a, w + kPanel);
    lane_step<Vec, 2>(acc, a, w + 2 * kPanel);
    lane_step<Vec, 3>(acc, a, w + 3 * kPanel);
  } else {
    step<Tail>(acc, tail, row, c, w);
    step<Tail>(acc, tail, row, c + 1, w + kPanel);
    step<Tail>(acc, tail, row, c + 2, w + 2 * kPanel);
    step<Tail>(acc, tail, row, c + 3, w + 3 * kPanel);
  }
}

template <size_t M, size_t NV, typename Tail>
void tile_of(const Tile& tile) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t kPanel = NV * kLanes + Tail::kLanes;
  Vec::T acc[M][NV];
  typename Tail::T tail[M];
  if (tile.init_stride == 0) {
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const Vec::T start = Vec::load(tile.init + v * kLanes);
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) acc[i][v] = start;
    }
    const typename Tail::T start = Tail::load(tile.init + NV * kLanes);
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) tail[i] = start;
  } else {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
      const float* start = tile.init + i * tile.init_stride;
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) acc[i][v] = Vec::load(start + v * kLanes);
      tail[i] = Tail::load(start + NV * kLanes);
    }
  }

  // The residual was written layers ago, so its lines are on their way while the product is
  // computed.
  const bool fetch_residual = tile.residual != nullptr && tile.park == nullptr;
  if (tile.fetch_y || fetch_residual) {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
      const size_t offset = tile.dests[i] * tile.ldy;
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) {
        if (tile.fetch_y) __builtin_prefetch(tile.y + offset + v * kLanes, 1, 3);
        if (fetch_residual) __builtin_prefetch(tile.residual + offset + v * kLanes, 0, 3);
      }
    }
  }

  const float* w = tile.weights;
  const float* prefetch = tile.prefetch;
  const float* const* rows = tile.rows;
  const size_t rows_step = tile.offsets == nullptr ? M : 0;
  for (size_t t = 0; t < tile.taps; ++t, rows += rows_step) {
    const std::ptrdiff_t offset = tile.offsets == nullptr ? 0 : tile.offsets[t];
    const float* row[M];
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) row[i] = rows[i] + offset + tile.row_offset;
    size_t c = 0;
    for (; c + 4 <= tile.channels; c += 4, w += 4 * kPanel) {
      four_steps<Tail>(acc, tail, row, c, w);
      for (size_t line = 0; line < tile.prefetch_lines; ++line, prefetch += kLineFloats) {
        if (tile.prefetch_far) {
          __builtin_prefetch(prefetch, 0, 2);
        } else {
          __builtin_prefetch(prefetch, 0, 3);
        }
      }
    }
    for (; c < tile.channels; ++c, w += kPanel) step<Tail>(acc, tail, row, c, w);
  }

  if (tile.park != nullptr) {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
      float* park = tile.park + i * kPanel;
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) Vec::store(park + v * kLanes, acc[i][v]);
      Tail::store(park + NV * kLanes, tail[i]);
    }
  } else if (tile.n == kPanel) {
    finish<M, NV, Tail, true>(tile, acc, tail);
  } else {
    finish<M, NV, Tail, false>(tile, acc, tail);
  }
}

template <size_t MR, size_t NV, typename Tail>
void run(const Tile& tile) {
  if constexpr (MR > 1) {
    if (tile.m < MR) return run<MR - 1, NV, Tail>(tile);
  }
  tile_of<MR, NV, Tail>(tile);
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
