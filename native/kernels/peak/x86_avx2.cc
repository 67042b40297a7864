#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/peak/generic.h"

SEMISPARSE_PEAK_DEFINE(avx2)
