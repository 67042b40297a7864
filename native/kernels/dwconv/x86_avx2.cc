#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/dwconv/generic.h"

SEMISPARSE_DWCONV_DEFINE(avx2)
