#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/winograd/generic.h"

SEMISPARSE_WINOGRAD_DEFINE(neon, 4)
SEMISPARSE_WINOGRAD_DEFINE(neon, 2)
