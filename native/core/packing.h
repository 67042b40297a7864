// Weights as the indirect-GEMM kernels read them.
#pragma once

#include <cstddef>

namespace semisparse {

// packed[t][c][j] = weights[first + j][c][t], 0 for count <= j < nr; t < taps, c < inputs, j < nr.
void pack_panel(const float* weights, size_t inputs, size_t taps, size_t first, size_t count,
                size_t nr, float* packed);

}  // namespace semisparse
