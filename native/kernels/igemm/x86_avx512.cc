#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/igemm/generic.h"

SEMISPARSE_IGEMM_DEFINE(avx512, 6, 64)
SEMISPARSE_IGEMM_DEFINE(avx512, 8, 48)
SEMISPARSE_IGEMM_DEFINE(avx512, 8, 32)
SEMISPARSE_IGEMM_DEFINE_TAIL(avx512, 8, 24, HalfVec)
SEMISPARSE_IGEMM_DEFINE(avx512, 8, 16)
