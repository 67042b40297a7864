// Every pooling kernel against the reference, on random windows.
#include <string>
#include <vector>

#include "kernels/pool/pool.h"
#include "kernels/pool/reference.h"
#include "tests/check.h"
#include "tests/guarded.h"
#include "tests/usable.h"

using namespace semisparse;
using test::Guarded;
using test::Random;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  pool::Function max, average, norm;
};

const Listed kKernels[] = {
#define SEMISPARSE_POOL(isa) \
  {#isa, "pool_" #isa, pool::pool_max_##isa, pool::pool_average_##isa, pool::pool_norm_##isa},
#include "kernels/pool/kernels.inc"
#undef SEMISPARSE_POOL
};

void check_window(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  pool::Window window{};
  window.taps = random.size(1, random.chance(0.2) ? 60 : 9);
  window.channels = random.size(1, random.chance(0.3) ? 300 : 40);
  test::context = std::string(kernel.name) + " taps=" + std::to_string(window.taps) +
                  " channels=" + std::to_string(window.channels) + " seed=" + std::to_string(seed);
  Guarded<float> input(window.channels + random.size(0, 200), random);
  test::fill(input, random, random.chance(0.5));
  std::vector<const float*> rows(window.taps);
  for (const float*& row : rows) {
    row = input.data() + random.size(0, input.size() - window.channels);
  }
  rows[random.size(0, rows.size() - 1)] = input.data() + input.size() - window.channels;
  window.rows = rows.data();

  Guarded<float> got(window.channels, random);
  Guarded<float> want(window.channels, random);
  window.scale = 1;
  window.y = got.data();
  kernel.max(window);
  window.y = want.data();
  pool::reference_max(window);
  test::check_same(got, want);

  window.y = got.data();
  kernel.norm(window);
  window.y = want.data();
  pool::reference_norm(window);
  test::check_same(got, want);

  window.scale = 1.0f / static_cast<float>(window.taps);
  window.y = got.data();
  kernel.average(window);
  window.y = want.data();
  pool::reference_average(window);
  test::check_same(got, want);
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(1000); ++i) check_window(kernel, i);
  });
}
