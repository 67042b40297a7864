#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/layernorm/generic.h"

SEMISPARSE_LAYERNORM_DEFINE(avx512)
