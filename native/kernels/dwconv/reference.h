// The contract of dwconv.h as a plain loop in double precision. Never optimised.
#pragma once

#include <algorithm>

#include "kernels/dwconv/dwconv.h"

namespace semisparse::dwconv {

inline void reference(const Strip& s) {
  for (size_t i = 0; i < s.m; ++i) {
    for (size_t c = 0; c < s.channels; ++c) {
      const size_t at = s.dests[i] * s.ldy + c;
      double sum = s.bias[c];
      for (size_t ky = 0; ky < s.height; ++ky) {
        for (size_t kx = 0; kx < s.width; ++kx) {
          if (s.taps == nullptr && s.windows != nullptr) {
            const Window& w = s.windows[i];
            if (ky < w.top || ky >= w.bottom || kx < w.left || kx >= w.right) continue;
          }
          const float* x = s.taps != nullptr
                               ? s.x + s.taps[(i * s.height + ky) * s.width + kx]
                               : s.rows[i] + static_cast<std::ptrdiff_t>(ky) * s.row_step +
                                     static_cast<std::ptrdiff_t>(kx) * s.column_step;
          sum += static_cast<double>(x[c]) *
                 s.weights[((c / kBlock * s.height + ky) * s.width + kx) * kBlock + c % kBlock];
        }
      }
      if (s.residual != nullptr) sum += s.residual[at];
      s.y[at] = static_cast<float>(
          std::min(std::max(sum, static_cast<double>(s.lo)), static_cast<double>(s.hi)));
    }
  }
}

}  // namespace semisparse::dwconv
