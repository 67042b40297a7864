#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/igemm/generic.h"

SEMISPARSE_IGEMM_DEFINE(generic, 4, 8)
SEMISPARSE_IGEMM_DEFINE(generic, 4, 4)
