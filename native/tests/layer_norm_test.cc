// Layer normalisation through the C API against the reference of its kernels, masked and not,
// serially and on threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/layernorm/reference.h"
#include "tests/api.h"
#include "tests/guarded.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

void check(uint64_t seed, ThreadPool& pool, const std::vector<std::string>& isas) {
  Random random(seed);
  const int64_t batch = random.between(0, 3);
  const int64_t positions = random.between(1, random.chance(0.2) ? 3000 : 50);
  const int64_t channels = random.between(1, random.chance(0.2) ? 400 : 40);
  const auto row = static_cast<size_t>(channels);
  const auto rows = static_cast<size_t>(batch * positions);
  Guarded<float> x(rows * row, random);
  Guarded<float> scale(row, random);
  Guarded<float> shift(row, random);
  fill(x, random, true);
  fill(scale, random, true);
  fill(shift, random, true);
  std::vector<uint8_t> mask;
  if (random.chance(0.6)) {
    const double sparsity = random.chance(0.2) ? 1 : 0.5;
    for (int64_t p = 0; p < positions; ++p) mask.push_back(random.chance(sparsity) ? 0 : 1);
  }

  std::vector<float> want(rows * row);
  semisparse::layernorm::reference(
      {x.data(), nullptr, 0, rows, row, scale.data(), shift.data(), 1e-5f, want.data()});
  for (size_t i = 0; i < rows && !mask.empty(); ++i) {
    if (mask[i % mask.size()] == 0) std::fill_n(want.data() + i * row, row, 0.0f);
  }
  for (const std::string& isa : isas) {
    for (const bool threads : {false, true}) {
      context = "seed " + std::to_string(seed) + " " + isa;
      Guarded<float> got(want.size(), random);
      for (size_t i = 0; i < got.size(); ++i) got[i] = -77;  // what is forgotten shows
      CHECK_OK(semisparse_layer_norm_run(
          x.data(), batch, positions, channels, scale.data(), shift.data(), 1e-5f,
          mask.empty() ? nullptr : mask.data(), got.data(), isa.c_str(),
          threads ? ThreadPool::parallel_for : nullptr, threads ? &pool : nullptr));
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(std::abs(got[i] - want[i]) <= 2e-5 * (1 + std::abs(want[i])));
      }
    }
  }
}

}  // namespace

int main() {
  ThreadPool pool(3);
  const std::vector<std::string> isas = usable_isas();
  for (size_t i = 0; i < rounds(300); ++i) check(i, pool, isas);
}
