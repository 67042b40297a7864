// Gates of channels, as in squeeze and excitation.
#pragma once

#include <cstddef>

namespace semisparse {

// The rows [begin, end) of a plane in NHWC times the gates of their channels.
inline void gate_rows(const float* x, size_t begin, size_t end, size_t channels, const float* gate,
                      float* y) {
  for (size_t i = begin; i < end; ++i) {
    const float* from = x + i * channels;
    float* to = y + i * channels;
    for (size_t c = 0; c < channels; ++c) to[c] = from[c] * gate[c];
  }
}

}  // namespace semisparse
