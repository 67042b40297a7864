// The contract of pool.h as a plain loop in double precision. Never optimised.
#pragma once

#include <cmath>

#include "kernels/pool/pool.h"

namespace semisparse::pool {

inline void reference_max(const Window& w) {
  for (size_t c = 0; c < w.channels; ++c) {
    double best = w.rows[0][c];
    for (size_t t = 1; t < w.taps; ++t) {
      const double x = w.rows[t][c];
      if (x > best || std::isnan(x)) best = x;
    }
    w.y[c] = static_cast<float>(best * w.scale);
  }
}

inline void reference_average(const Window& w) {
  for (size_t c = 0; c < w.channels; ++c) {
    double sum = 0;
    for (size_t t = 0; t < w.taps; ++t) sum += w.rows[t][c];
    w.y[c] = static_cast<float>(sum * w.scale);
  }
}

inline void reference_norm(const Window& w) {
  for (size_t c = 0; c < w.channels; ++c) {
    double sum = 0;
    for (size_t t = 0; t < w.taps; ++t) sum += static_cast<double>(w.rows[t][c]) * w.rows[t][c];
    w.y[c] = static_cast<float>(std::sqrt(sum) * w.scale);
  }
}

}  // namespace semisparse::pool
