#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/layernorm/generic.h"

SEMISPARSE_LAYERNORM_DEFINE(neon)
