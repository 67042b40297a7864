// The indirect-GEMM kernel over any vector type. An instruction-set file includes its kernels/simd
// header, which defines Vec, then this, then names its instances with SEMISPARSE_IGEMM_DEFINE.
#pragma once

#include "kernels/igemm/igemm.h"

namespace semisparse::igemm {
namespace {

constexpr size_t kLineFloats = 16;

template <size_t M, size_t NV, bool kWhole>
void finish(const Tile& tile, const Vec::T (&acc)[M][NV]) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(tile.lo);
  const Vec::T hi = Vec::set1(tile.hi);
  const size_t last = tile.n - (NV - 1) * kLanes;  // lanes of the last vector, where not whole
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const size_t offset = tile.dests[i] * tile.ldy;
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const bool whole = kWhole || v + 1 < NV;
      Vec::T value = acc[i][v];
      if (tile.residual != nullptr) {
        const float* from = tile.residual + offset + v * kLanes;
        value = Vec::add(value, whole ? Vec::load(from) : Vec::load_first(from, last));
      }
      value = Vec::clamp(value, lo, hi);
      float* to = tile.y + offset + v * kLanes;
      if (whole) {
        Vec::store(to, value);
      } else {
        Vec::store_first(to, value, last);
      }
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

// acc[i][v] += row[i][c] * w[v] for one c.
template <size_t M, size_t NV>
inline void step(Vec::T (&acc)[M][NV], const float* const (&row)[M], size_t c, const float* w) {
  Vec::T b[NV];
#pragma GCC unroll 8
  for (size_t v = 0; v < NV; ++v) b[v] = Vec::load(w + v * Vec::kLanes);
#pragma GCC unroll 8
  for (size_t i = 0; i < M; ++i) {
    const Vec::T a = Vec::set1(row[i][c]);
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) acc[i][v] = Vec::fma(b[v], a, acc[i][v]);
  }
}

// The same for c to c + 3. Taking four at a time gave 90 to 97% of the FMA peak instead of 85%.
template <size_t M, size_t NV>
inline void four_steps(Vec::T (&acc)[M][NV], const float* const (&row)[M], size_t c,
                       const float* w) {
  constexpr size_t kPanel = NV * Vec::kLanes;
  if constexpr (Vec::kFmaByLane) {
    Vec::T a[M];
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) a[i] = Vec::load(row[i] + c);
    lane_step<Vec, 0>(acc, a, w);
    lane_step<Vec, 1>(acc, a, w + kPanel);
    lane_step<Vec, 2>(acc, a, w + 2 * kPanel);
    lane_step<Vec, 3>(acc, a, w + 3 * kPanel);
  } else {
    step(acc, row, c, w);
    step(acc, row, c + 1, w + kPanel);
    step(acc, row, c + 2, w + 2 * kPanel);
    step(acc, row, c + 3, w + 3 * kPanel);
  }
}

template <size_t M, size_t NV>
void tile_of(const Tile& tile) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t kPanel = NV * kLanes;
  Vec::T acc[M][NV];
  if (tile.init_stride == 0) {
#pragma GCC unroll 8
    for (size_t v = 0; v < NV; ++v) {
      const Vec::T start = Vec::load(tile.init + v * kLanes);
#pragma GCC unroll 8
      for (size_t i = 0; i < M; ++i) acc[i][v] = start;
    }
  } else {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) {
        acc[i][v] = Vec::load(tile.init + i * tile.init_stride + v * kLanes);
      }
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
      four_steps(acc, row, c, w);
      for (size_t line = 0; line < tile.prefetch_lines; ++line, prefetch += kLineFloats) {
        if (tile.prefetch_far) {
          __builtin_prefetch(prefetch, 0, 2);
        } else {
          __builtin_prefetch(prefetch, 0, 3);
        }
      }
    }
    for (; c < tile.channels; ++c, w += kPanel) step(acc, row, c, w);
  }

  if (tile.park != nullptr) {
#pragma GCC unroll 8
    for (size_t i = 0; i < M; ++i) {
#pragma GCC unroll 8
      for (size_t v = 0; v < NV; ++v) {
        Vec::store(tile.park + (i * NV + v) * kLanes, acc[i][v]);
      }
    }
  } else if (tile.n == NV * kLanes) {
    finish<M, NV, true>(tile, acc);
  } else {
    finish<M, NV, false>(tile, acc);
  }
}

template <size_t MR, size_t NV>
void run(const Tile& tile) {
  if constexpr (MR > 1) {
    if (tile.m < MR) return run<MR - 1, NV>(tile);
  }
  tile_of<MR, NV>(tile);
}

}  // namespace
}  // namespace semisparse::igemm

#define SEMISPARSE_IGEMM_DEFINE(isa, mr, nr)                          \
  namespace semisparse::igemm {                                       \
  void igemm_##isa##_##mr##x##nr(const Tile& tile) {                  \
    static_assert(nr % Vec::kLanes == 0, "panels are whole vectors"); \
    run<mr, nr / Vec::kLanes>(tile);                                  \
  }                                                                   \
  }
