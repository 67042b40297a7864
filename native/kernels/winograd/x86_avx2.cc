#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/winograd/generic.h"

SEMISPARSE_WINOGRAD_DEFINE(avx2, 4)
SEMISPARSE_WINOGRAD_DEFINE(avx2, 2)
