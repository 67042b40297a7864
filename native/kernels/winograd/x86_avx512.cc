#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/winograd/generic.h"

SEMISPARSE_WINOGRAD_DEFINE(avx512, 4)
SEMISPARSE_WINOGRAD_DEFINE(avx512, 2)
