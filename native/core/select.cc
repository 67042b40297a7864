#include "core/select.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"

namespace semisparse {
namespace {

[[maybe_unused]] constexpr Isa avx512 = Isa::kAvx512;
[[maybe_unused]] constexpr Isa avx2 = Isa::kAvx2;
[[maybe_unused]] constexpr Isa neon = Isa::kNeon;
[[maybe_unused]] constexpr Isa generic = Isa::kGeneric;

template <typename Kernel>
struct Entry {
  Isa isa;
  Kernel kernel;
};

const Entry<igemm::Kernel> kIgemm[] = {
#define SEMISPARSE_IGEMM(isa, mr, nr, most_depth) \
  {isa, {"igemm_" #isa "_" #mr "x" #nr, mr, nr, igemm::igemm_##isa##_##mr##x##nr, most_depth}},
#include "kernels/igemm/kernels.inc"
#undef SEMISPARSE_IGEMM
};

const Entry<dwconv::Kernel> kDwconv[] = {
#define SEMISPARSE_DWCONV(isa, most_taps_alike) \
  {isa, {"dwconv_" #isa, dwconv::dwconv_##isa, most_taps_alike}},
#include "kernels/dwconv/kernels.inc"
#undef SEMISPARSE_DWCONV
};

const Entry<winograd::Kernel> kWinograd[] = {
#define SEMISPARSE_WINOGRAD(isa, t)                                                \
  {isa,                                                                            \
   {"winograd_" #isa "_" #t "x" #t, t, winograd::winograd_input_##isa##_##t##x##t, \
    winograd::winograd_output_##isa##_##t##x##t}},
#include "kernels/winograd/kernels.inc"
#undef SEMISPARSE_WINOGRAD
};

const Entry<pool::Kernel> kPool[] = {
#define SEMISPARSE_POOL(isa) \
  {isa, {"pool_" #isa, pool::pool_max_##isa, pool::pool_average_##isa, pool::pool_norm_##isa}},
#include "kernels/pool/kernels.inc"
#undef SEMISPARSE_POOL
};

const Entry<layernorm::Kernel> kLayerNorm[] = {
#define SEMISPARSE_LAYERNORM(isa) {isa, {"layernorm_" #isa, layernorm::layernorm_##isa}},
#include "kernels/layernorm/kernels.inc"
#undef SEMISPARSE_LAYERNORM
};

const Entry<epilogue::Kernel> kEpilogue[] = {
#define SEMISPARSE_EPILOGUE(isa)                                                                \
  {isa,                                                                                         \
   {"epilogue_" #isa, epilogue::spread_##isa, epilogue::mean_##isa, epilogue::leaky_relu_##isa, \
    epilogue::silu_##isa, epilogue::hard_swish_##isa, epilogue::sigmoid_##isa,                  \
    epilogue::hard_sigmoid_##isa, epilogue::gelu_##isa}},
#include "kernels/epilogue/kernels.inc"
#undef SEMISPARSE_EPILOGUE
};

const Entry<peak::Kernel> kPeak[] = {
#define SEMISPARSE_PEAK(isa) {isa, {"fma_" #isa, peak::fma_##isa}},
#include "kernels/peak/kernels.inc"
#undef SEMISPARSE_PEAK
};

template <typename Kernel, size_t N>
const Kernel& only(const Entry<Kernel> (&entries)[N], Isa isa) {
  for (const Entry<Kernel>& entry : entries) {
    if (entry.isa == isa) return entry.kernel;
  }
  throw Error(SEMISPARSE_INTERNAL, "an instruction set lacks a kernel family");
}

template <typename Kernel, size_t N>
void append(std::vector<KernelInfo>& all, const Entry<Kernel> (&entries)[N]) {
  for (const Entry<Kernel>& entry : entries) all.push_back({entry.kernel.name, entry.isa});
}

}  // namespace

const igemm::Kernel& igemm_kernel(Isa isa, size_t channels) {
  const igemm::Kernel* narrowest = nullptr;
  for (const auto& entry : kIgemm) {
    const igemm::Kernel& kernel = entry.kernel;
    if (entry.isa != isa || kernel.nr < channels) continue;
    if (narrowest == nullptr || kernel.nr < narrowest->nr) narrowest = &kernel;
  }
  if (narrowest == nullptr) {
    throw Error(SEMISPARSE_INTERNAL,
                "no kernel computes " + std::to_string(channels) + " channels at once");
  }
  return *narrowest;
}

size_t igemm_narrowest(Isa isa) {
  size_t nr = std::numeric_limits<size_t>::max();
  for (const auto& entry : kIgemm) {
    if (entry.isa == isa) nr = std::min(nr, entry.kernel.nr);
  }
  return nr;
}

size_t igemm_widest(Isa isa, size_t depth) {
  size_t nr = 0;
  for (const auto& entry : kIgemm) {
    if (entry.isa == isa && depth <= entry.kernel.most_depth) nr = std::max(nr, entry.kernel.nr);
  }
  return nr;
}

const dwconv::Kernel& dwconv_kernel(Isa isa) { return only(kDwconv, isa); }

const winograd::Kernel* winograd_kernel(Isa isa, size_t outputs) {
  for (const auto& entry : kWinograd) {
    if (entry.isa == isa && entry.kernel.outputs == outputs) return &entry.kernel;
  }
  return nullptr;
}

const pool::Kernel& pool_kernel(Isa isa) { return only(kPool, isa); }
const layernorm::Kernel& layernorm_kernel(Isa isa) { return only(kLayerNorm, isa); }
const epilogue::Kernel& epilogue_kernel(Isa isa) { return only(kEpilogue, isa); }
const peak::Kernel& peak_kernel(Isa isa) { return only(kPeak, isa); }

const KernelInfo* built_kernel(size_t index) {
  static const std::vector<KernelInfo> all = [] {
    std::vector<KernelInfo> list;
    append(list, kIgemm);
    append(list, kDwconv);
    append(list, kWinograd);
    append(list, kPool);
    append(list, kLayerNorm);
    append(list, kEpilogue);
    append(list, kPeak);
    return list;
  }();
  return index < all.size() ? &all[index] : nullptr;
}

}  // namespace semisparse
