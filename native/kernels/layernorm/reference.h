// The contract of layernorm.h, in double precision. Never optimised.
#pragma once

#include <cmath>

#include "kernels/layernorm/layernorm.h"

namespace semisparse::layernorm {

inline void reference(const Rows& r) {
  const auto n = static_cast<double>(r.channels);
  for (size_t i = 0; i < r.count; ++i) {
    const size_t position = r.positions != nullptr ? r.positions[i] : r.first + i;
    const float* x = r.x + position * r.channels;
    double mean = 0;
    for (size_t c = 0; c < r.channels; ++c) mean += x[c] / n;
    double variance = 0;
    for (size_t c = 0; c < r.channels; ++c) variance += (x[c] - mean) * (x[c] - mean) / n;
    for (size_t c = 0; c < r.channels; ++c) {
      const double off = (x[c] - mean) / std::sqrt(variance + static_cast<double>(r.epsilon));
      r.y[position * r.channels + c] = static_cast<float>(off * r.scale[c] + r.shift[c]);
    }
  }
}

}  // namespace semisparse::layernorm
