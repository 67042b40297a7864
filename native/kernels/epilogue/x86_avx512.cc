#include "kernels/simd/avx512.h"
// The vector type comes first.
#include "kernels/epilogue/generic.h"

SEMISPARSE_EPILOGUE_DEFINE(avx512)
