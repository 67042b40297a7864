// The convolution operators, one per fill, residual and activation.
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

std::vector<const OrtCustomOp*> conv_operators();

}  // namespace semisparse::ort
