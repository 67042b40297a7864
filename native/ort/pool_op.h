// MaxPool, AveragePool and GlobalAveragePool in NHWC.
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

std::vector<const OrtCustomOp*> pool_operators();

}  // namespace semisparse::ort
