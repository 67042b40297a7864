// The operators of several convolutions in a row, one per form, fill, residual and activation.
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

std::vector<const OrtCustomOp*> chain_operators();

}  // namespace semisparse::ort
