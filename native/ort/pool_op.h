// MaxPool, AveragePool, GlobalAveragePool and GlobalL2Pool in NHWC.
#pragma once

#include <vector>

#include "ort/ort_api.h"

namespace semisparse::ort {

std::vector<const OrtCustomOp*> pool_operators();

}  // namespace semisparse::ort
