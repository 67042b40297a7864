#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/layernorm/generic.h"

SEMISPARSE_LAYERNORM_DEFINE(generic)
