#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/pool/generic.h"

SEMISPARSE_POOL_DEFINE(generic)
