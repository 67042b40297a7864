#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/peak/generic.h"

SEMISPARSE_PEAK_DEFINE(avx512)
