// Kernels by instruction set.
#pragma once

#include <cstddef>

#include "core/isa.h"
#include "kernels/dwconv/dwconv.h"
#include "kernels/epilogue/epilogue.h"
#include "kernels/igemm/igemm.h"
#include "kernels/layernorm/layernorm.h"
#include "kernels/peak/peak.h"
#include "kernels/pool/pool.h"
#include "kernels/winograd/winograd.h"

namespace semisparse {

// The narrowest indirect-GEMM kernel for so many channels, at most igemm_widest.
const igemm::Kernel& igemm_kernel(Isa isa, size_t channels);
// Narrowest and widest panel; every multiple of the narrowest in between exists.
size_t igemm_narrowest(Isa isa);
// For products of so many inputs times taps.
size_t igemm_widest(Isa isa, size_t depth);

const dwconv::Kernel& dwconv_kernel(Isa isa);
// The Winograd transforms of tiles of this size, or null.
const winograd::Kernel* winograd_kernel(Isa isa, size_t outputs);
const pool::Kernel& pool_kernel(Isa isa);
const layernorm::Kernel& layernorm_kernel(Isa isa);
const epilogue::Kernel& epilogue_kernel(Isa isa);
const peak::Kernel& peak_kernel(Isa isa);

struct KernelInfo {
  const char* name;
  Isa isa;
};

// Every kernel built, family by family, best instruction set first; null past the last.
const KernelInfo* built_kernel(size_t index);

}  // namespace semisparse
