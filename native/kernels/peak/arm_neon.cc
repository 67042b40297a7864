#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/peak/generic.h"

SEMISPARSE_PEAK_DEFINE(neon)
