#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/igemm/generic.h"

SEMISPARSE_IGEMM_DEFINE(neon, 8, 8)
SEMISPARSE_IGEMM_DEFINE(neon, 8, 4)
