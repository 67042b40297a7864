// What the machine can do, for the benchmarks' fractions of it.
#pragma once

#include <cstddef>

#include "core/isa.h"

namespace semisparse {

double measure_fma(const IsaInfo& isa, double seconds);  // FLOP/s of one core
double measure_copy(size_t bytes, double seconds);       // bytes/s, read plus written

}  // namespace semisparse
