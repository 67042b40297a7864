#include "kernels/simd/generic.h"
// The vector type comes first.
#include "kernels/epilogue/generic.h"

SEMISPARSE_EPILOGUE_DEFINE(generic)
