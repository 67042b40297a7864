// SEMISPARSE_ISA decides which kernels run, and fails loudly when it cannot be obeyed.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/api.h"

using namespace semisparse::test;

namespace {

// Kernel of a convolution that asks for no instruction set, or "" and the status.
std::string kernel_chosen(int64_t group, semisparse_status* status) {
  semisparse_conv_desc desc{};
  desc.in_channels = desc.out_channels = 8;
  desc.group = group;
  for (int i = 0; i < 2; ++i) desc.kernel[i] = desc.strides[i] = desc.dilations[i] = 1;
  const std::vector<float> weights(static_cast<size_t>(64 / group), 1.0f);
  semisparse_conv* conv = nullptr;
  *status = semisparse_conv_create(&desc, weights.data(), nullptr, nullptr, nullptr, 0, 0, nullptr,
                                   &conv);
  if (*status != SEMISPARSE_OK) return "";
  const ConvHandle handle(conv);
  return semisparse_conv_kernel(conv);
}

bool starts_with(const std::string& text, const std::string& start) {
  return text.compare(0, start.size(), start) == 0;
}

void check_obeyed(const std::string& isa) {
  setenv("SEMISPARSE_ISA", isa.c_str(), 1);
  CHECK(semisparse_isa() != nullptr);
  CHECK(semisparse_isa() == isa);
  semisparse_status status;
  CHECK(starts_with(kernel_chosen(1, &status), "igemm_" + isa + "_"));
  CHECK(kernel_chosen(8, &status) == "dwconv_" + isa);
}

void check_refused(const std::string& isa) {
  setenv("SEMISPARSE_ISA", isa.c_str(), 1);
  CHECK(semisparse_isa() == nullptr);
  const std::string error = semisparse_last_error();
  CHECK(error.find("SEMISPARSE_ISA") != std::string::npos);
  CHECK(error.find("'" + isa + "'") != std::string::npos);
  semisparse_status status;
  CHECK(kernel_chosen(1, &status).empty());
  CHECK(status == SEMISPARSE_UNSUPPORTED);
}

}  // namespace

int main() {
  std::vector<std::string> built;
  std::string best;
  int usable = 0;
  for (size_t i = 0; const char* name = semisparse_isa_name(i, &usable); ++i) {
    context = name;
    built.push_back(name);
    if (usable) {
      check_obeyed(name);
      if (best.empty()) best = name;
    } else {
      check_refused(name);
    }
  }
  CHECK(semisparse_isa_name(built.size(), &usable) == nullptr);
  CHECK(std::find(built.begin(), built.end(), "generic") != built.end());

  // Sets of other processors and misspelt ones; no prefix or other case will do.
  for (const char* name : {"avx", "avx51", "AVX2", "generic ", "neon64", "none"}) {
    context = name;
    check_refused(name);
  }

  setenv("SEMISPARSE_ISA", "", 1);
  CHECK(semisparse_isa() == best);
  unsetenv("SEMISPARSE_ISA");
  CHECK(semisparse_isa() == best);

  // Every kernel belongs to a set, which its name says.
  size_t kernels = 0;
  for (; const char* name = semisparse_kernel_name(kernels, &usable); ++kernels) {
    context = name;
    const std::string text = std::string(name) + "_";
    CHECK(std::any_of(built.begin(), built.end(), [&](const std::string& isa) {
      return text.find("_" + isa + "_") != std::string::npos;
    }));
  }
  CHECK(kernels >= 5 * built.size());
}
