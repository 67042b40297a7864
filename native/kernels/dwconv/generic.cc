#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/dwconv/generic.h"

SEMISPARSE_DWCONV_DEFINE(generic)
