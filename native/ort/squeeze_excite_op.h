// The operators SqueezeExcite and SqueezeExciteScale with their activations (docs/format.md).
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

// Never freed.
std::vector<const OrtCustomOp*> squeeze_excite_operators();

}  // namespace semisparse::ort
