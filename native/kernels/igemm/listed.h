// Every indirect-GEMM kernel with its name and sizes, for its test and its benchmark.
#pragma once

#include "kernels/igemm/igemm.h"

namespace semisparse::igemm {

struct Listed {
  const char* isa;
  const char* name;
  size_t mr, nr;
  Function run;
};

inline constexpr Listed kListed[] = {
#define SEMISPARSE_IGEMM(isa, mr, nr, most_depth) \
  {#isa, "igemm_" #isa "_" #mr "x" #nr, mr, nr, igemm_##isa##_##mr##x##nr},
#include "kernels/igemm/kernels.inc"
#undef SEMISPARSE_IGEMM
};

}  // namespace semisparse::igemm
