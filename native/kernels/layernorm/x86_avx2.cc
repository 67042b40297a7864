#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/layernorm/generic.h"

SEMISPARSE_LAYERNORM_DEFINE(avx2)
