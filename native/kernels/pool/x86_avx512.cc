#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/pool/generic.h"

SEMISPARSE_POOL_DEFINE(avx512)
