// Instruction sets: which were built into the library, which this CPU has, which one is in force.
#pragma once

#include <cstddef>

namespace semisparse {

// Best first; kGeneric is plain C++ and always usable.
enum class Isa { kAvx512, kAvx2, kNeon, kGeneric };

struct IsaInfo {
  Isa isa;
  const char* name;
  bool usable;  // this CPU and its operating system can run it
};

// The sets that were built, best first; null past the last.
const IsaInfo* built_isa(size_t index);

// $SEMISPARSE_ISA if it is set, else the best usable one. Throws Error when the one asked for was
// not built or cannot run here: a silent fallback would make every measurement a lie.
const IsaInfo& selected_isa();

// As selected_isa, for a name given by the caller; null asks for selected_isa.
const IsaInfo& find_isa(const char* name);

// Size of the second-level cache of one core, or a cautious guess where it cannot be read.
size_t l2_cache_bytes();

}  // namespace semisparse
