#include "core/packing.h"

namespace semisparse {

void pack_panel(const float* weights, size_t inputs, size_t taps, size_t first, size_t count,
                size_t nr, float* packed) {
  for (size_t t = 0; t < taps; ++t) {
    for (size_t c = 0; c < inputs; ++c) {
      for (size_t j = 0; j < nr; ++j) {
        *packed++ = j < count ? weights[((first + j) * inputs + c) * taps + t] : 0.0f;
      }
    }
  }
}

}  // namespace semisparse
