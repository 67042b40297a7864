#include "kernels/simd/avx2.h"
// The vector type comes first.
#include "kernels/epilogue/generic.h"

SEMISPARSE_EPILOGUE_DEFINE(avx2)
