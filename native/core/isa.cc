#include "core/isa.h"

#include <unistd.h>

#include <cstdlib>
#include <string>

#include "core/error.h"

namespace semisparse {
namespace {

const IsaInfo kBuilt[] = {
#if defined(__x86_64__)
    // The AVX-512 files are compiled for F, VL, DQ and BW together; every CPU since Skylake-X that
    // has the first has all four, and asking for all four keeps the rest off this path.
    {Isa::kAvx512, "avx512",
     __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("fma")},
    {Isa::kAvx2, "avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#elif defined(__aarch64__)
    {Isa::kNeon, "neon", true},
#endif
    {Isa::kGeneric, "generic", true},
};

std::string built_names() {
  std::string names;
  for (const IsaInfo& info : kBuilt) {
    names += names.empty() ? "" : ", ";
    names += info.name;
    if (!info.usable) names += " (not usable on this CPU)";
  }
  return names;
}

const IsaInfo& named(const std::string& name, const char* whose) {
  for (const IsaInfo& info : kBuilt) {
    if (name != info.name) continue;
    if (info.usable) return info;
    throw Error(SEMISPARSE_UNSUPPORTED,
                whose + (" instruction set '" + name) +
                    "' cannot run on this CPU; choose one of: " + built_names());
  }
  throw Error(SEMISPARSE_UNSUPPORTED,
              whose + (" instruction set '" + name) +
                  "' was not built into this library; choose one of: " + built_names());
}

}  // namespace

const IsaInfo* built_isa(size_t index) {
  return index < sizeof(kBuilt) / sizeof(kBuilt[0]) ? &kBuilt[index] : nullptr;
}

const IsaInfo& selected_isa() {
  const char* forced = std::getenv("SEMISPARSE_ISA");
  if (forced != nullptr && forced[0] != '\0') return named(forced, "SEMISPARSE_ISA: the");
  for (const IsaInfo& info : kBuilt) {
    if (info.usable) return info;
  }
  throw Error(SEMISPARSE_INTERNAL, "no instruction set is usable");
}

const IsaInfo& find_isa(const char* name) {
  return name == nullptr ? selected_isa() : named(name, "the");
}

size_t l2_cache_bytes() {
  static const size_t bytes = [] {
    long size = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    // Cortex-A72 boards report nothing; four cores share 1 MB there.
    return size > 0 ? static_cast<size_t>(size) : size_t{256} << 10;
  }();
  return bytes;
}

}  // namespace semisparse
