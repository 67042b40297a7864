// The contract of igemm.h as a plain loop in double precision. Never optimised: it is the truth
// that the kernels are tested against.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/igemm/igemm.h"

namespace semisparse::igemm {

inline void reference(const Tile& tile, size_t nr) {
  for (size_t i = 0; i < tile.m; ++i) {
    std::vector<double> acc(nr);
    for (size_t j = 0; j < nr; ++j) {
      acc[j] = tile.init[i * tile.init_stride + j];
      for (size_t t = 0; t < tile.taps; ++t) {
        const float* row =
            tile.offsets == nullptr ? tile.rows[t * tile.m + i] : tile.rows[i] + tile.offsets[t];
        for (size_t c = 0; c < tile.channels; ++c) {
          acc[j] += static_cast<double>(row[tile.row_offset + c]) *
                    tile.weights[(t * tile.channels + c) * nr + j];
        }
      }
    }
    if (tile.park != nullptr) {
      for (size_t j = 0; j < nr; ++j) tile.park[i * nr + j] = static_cast<float>(acc[j]);
      continue;
    }
    for (size_t j = 0; j < tile.n; ++j) {
      const size_t at = tile.dests[i] * tile.ldy + j;
      const double sum = acc[j] + (tile.residual != nullptr ? tile.residual[at] : 0.0);
      tile.y[at] = static_cast<float>(
          std::min(std::max(sum, static_cast<double>(tile.lo)), static_cast<double>(tile.hi)));
    }
  }
}

}  // namespace semisparse::igemm
