// The filters' side of Winograd's algorithm.
#pragma once

#include <cstddef>

namespace semisparse {

// u[k][c][j] = (G g G^T)[k / s][k % s] (see kernels/winograd/winograd.h) of one panel's filters,
// for g[y][x] = weights[y * 3 + x][c][j]; c < channels, j < nr.
void transform_filters(size_t outputs, const float* weights, size_t channels, size_t nr, float* u);

}  // namespace semisparse
