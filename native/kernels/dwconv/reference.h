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
      for (size_t t = 0; t < s.taps; ++t) {
        const float* row = s.offsets == nullptr ? s.rows[i * s.taps + t] : s.rows[i] + s.offsets[t];
        sum += static_cast<double>(row[c]) * s.weights[t * s.ldw + c];
      }
      if (s.residual != nullptr) sum += s.residual[at];
      s.y[at] = static_cast<float>(
          std::min(std::max(sum, static_cast<double>(s.lo)), static_cast<double>(s.hi)));
    }
  }
}

}  // namespace semisparse::dwconv
