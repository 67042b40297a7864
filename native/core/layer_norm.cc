#include "core/layer_norm.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/division.h"
#include "core/error.h"
#include "core/select.h"

namespace semisparse {

LayerNorm::LayerNorm(size_t channels, const float* scale, const float* shift, float epsilon,
                     const uint8_t* mask, size_t positions, const IsaInfo& isa)
    : rows_{}, normalize_(layernorm_kernel(isa.isa).normalize) {
  if (channels == 0) invalid("a layer normalisation of no channels is not possible");
  if (!(epsilon >= 0)) {
    invalid("epsilon of a layer normalisation is " + std::to_string(epsilon) +
            "; it must be 0 or more");
  }
  rows_.channels = channels;
  rows_.scale = scale;
  rows_.shift = shift;
  rows_.epsilon = epsilon;
  if (mask == nullptr) return;
  if (positions == 0 || positions > std::numeric_limits<int32_t>::max()) {
    invalid("a mask of " + std::to_string(positions) +
            " positions is not possible; it must have at least one, and fewer than 2^31");
  }
  for (size_t p = 0; p < positions; ++p) {
    (mask[p] != 0 ? computed_ : masked_).push_back(static_cast<uint32_t>(p));
  }
}

void LayerNorm::run(const float* x, size_t rows, float* y, const Parallel& parallel) const {
  if (masked()) {
    const size_t positions = computed_.size() + masked_.size();
    for (size_t first = 0; first < rows; first += positions) {
      run_image(x + first * rows_.channels, y + first * rows_.channels, parallel);
    }
    return;
  }
  parallel.ranges(rows, grain_of(rows_.channels), [&](size_t begin, size_t end) {
    layernorm::Rows some = rows_;
    some.x = x;
    some.y = y;
    some.first = begin;
    some.count = end - begin;
    normalize_(some);
  });
}

void LayerNorm::run_image(const float* x, float* y, const Parallel& parallel) const {
  // Nothing computed is one task, too, for the sake of what is masked.
  const size_t tasks = std::max<size_t>(1, computed_.size());
  parallel.ranges(tasks, grain_of(rows_.channels), [&](size_t begin, size_t end) {
    layernorm::Rows some = rows_;
    some.x = x;
    some.y = y;
    some.positions = computed_.data() + begin;
    some.count = std::min(end, computed_.size()) - begin;
    normalize_(some);
    for (size_t i = masked_.size() * begin / tasks; i < masked_.size() * end / tasks; ++i) {
      std::fill_n(y + masked_[i] * rows_.channels, rows_.channels, 0.0f);
    }
  });
}

}  // namespace semisparse
