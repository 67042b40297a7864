// The C API with its memory looked after.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "semisparse.h"
#include "tests/check.h"

namespace semisparse::test {

#define CHECK_OK(call)                                                           \
  do {                                                                           \
    if ((call) != SEMISPARSE_OK) {                                               \
      semisparse::test::fail(__FILE__, __LINE__,                                 \
                             #call ": " + std::string(semisparse_last_error())); \
    }                                                                            \
  } while (false)

struct Destroy {
  void operator()(semisparse_conv* conv) const { semisparse_conv_destroy(conv); }
};
using ConvHandle = std::unique_ptr<semisparse_conv, Destroy>;

inline std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  int usable = 0;
  for (size_t i = 0; const char* name = semisparse_isa_name(i, &usable); ++i) {
    if (usable) names.push_back(name);
  }
  CHECK(!names.empty());
  return names;
}

}  // namespace semisparse::test
