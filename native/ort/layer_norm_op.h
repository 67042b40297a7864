// The operators LayerNorm and LayerNormMasked (docs/format.md).
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

// Never freed.
std::vector<const OrtCustomOp*> layer_norm_operators();

}  // namespace semisparse::ort
