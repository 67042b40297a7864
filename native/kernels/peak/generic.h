// The FMA loop over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/peak/peak.h"

namespace semisparse::peak {
namespace {

double run(size_t turns, float* sink) {
  constexpr size_t kChains = 12;  // 2 pipes times a latency of 4 to 5 cycles, and 16 registers
  Vec::T acc[kChains];
#pragma GCC unroll 12
  for (size_t i = 0; i < kChains; ++i) acc[i] = Vec::set1(static_cast<float>(i));
  const Vec::T a = Vec::set1(0.5f);
  const Vec::T b = Vec::set1(sink[0]);
  for (size_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (size_t i = 0; i < kChains; ++i) acc[i] = Vec::fma(acc[i], a, b);
  }
#pragma GCC unroll 12
  for (size_t i = 1; i < kChains; ++i) acc[0] = Vec::add(acc[0], acc[i]);
  Vec::store_first(sink, acc[0], 1);
  return static_cast<double>(turns) * kChains * Vec::kLanes * 2;
}

}  // namespace
}  // namespace semisparse::peak

#define SEMISPARSE_PEAK_DEFINE(isa)                                        \
  namespace semisparse::peak {                                             \
  double fma_##isa(size_t turns, float* sink) { return run(turns, sink); } \
  }
