#include "kernels/simd/neon.h"
// The vector type comes first.
#include "kernels/dwconv/generic.h"

SEMISPARSE_DWCONV_DEFINE(neon)
