#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/pool/generic.h"

SEMISPARSE_POOL_DEFINE(neon)
