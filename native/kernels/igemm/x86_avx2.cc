#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/igemm/generic.h"

SEMISPARSE_IGEMM_DEFINE(avx2, 3, 32)
SEMISPARSE_IGEMM_DEFINE(avx2, 4, 24)
SEMISPARSE_IGEMM_DEFINE(avx2, 6, 16)
SEMISPARSE_IGEMM_DEFINE(avx2, 8, 8)
