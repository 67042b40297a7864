// The machine's ceiling: fused multiply-adds on registers only, on as many independent accumulators
// as hide the latency. Returns the floating-point operations done (an FMA is two); `sink` keeps the
// work from being optimised away.
#pragma once

#include <cstddef>

namespace semisparse::peak {

using Function = double (*)(size_t turns, float* sink);

struct Kernel {
  const char* name;
  Function fma;
};

#define SEMISPARSE_PEAK(isa) double fma_##isa(size_t turns, float* sink);
#include "kernels/peak/kernels.inc"
#undef SEMISPARSE_PEAK

}  // namespace semisparse::peak
