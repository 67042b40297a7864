// Pooling in NHWC.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/parallel.h"
#include "semisparse.h"

namespace semisparse {

// Arguments as in semisparse_pool_output_size and semisparse_pool_run. They throw Error.
void pool_output_size(const semisparse_pool_desc& desc, int64_t height, int64_t width,
                      int64_t* out_height, int64_t* out_width);
void run_pool(const semisparse_pool_desc& desc, const float* x, int64_t batch, int64_t height,
              int64_t width, int64_t channels, float* y, const IsaInfo& isa,
              const Parallel& parallel);

}  // namespace semisparse
