// Which of the listed kernels this CPU can run.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>

#include "core/isa.h"
#include "tests/check.h"

namespace semisparse::test {

inline bool usable(const char* isa) {
  for (size_t i = 0; const IsaInfo* info = built_isa(i); ++i) {
    if (std::strcmp(info->name, isa) == 0) return info->usable;
  }
  fail(__FILE__, __LINE__, std::string(isa) + " is in kernels.inc but not among the built sets");
}

// Calls test(kernel) for every kernel of a list that can run here, and says which it was.
template <typename Kernels, typename Test>
void for_each_usable(const Kernels& kernels, const Test& test) {
  for (const auto& kernel : kernels) {
    if (usable(kernel.isa)) {
      test(kernel);
      std::printf("%s: ok\n", kernel.name);
    } else {
      std::printf("%s: this CPU cannot run it\n", kernel.name);
    }
  }
}

}  // namespace semisparse::test
