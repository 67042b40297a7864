#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/winograd/generic.h"

SEMISPARSE_WINOGRAD_DEFINE(generic, 4)
SEMISPARSE_WINOGRAD_DEFINE(generic, 2)
