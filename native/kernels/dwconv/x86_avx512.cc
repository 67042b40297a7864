#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/dwconv/wide.h"

SEMISPARSE_DWCONV_DEFINE(avx512)
