// Every layer normalisation kernel against the reference, on random rows.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/layernorm/layernorm.h"
#include "kernels/layernorm/reference.h"
#include "tests/check.h"
#include "tests/guarded.h"
#include "tests/operands.h"
#include "tests/usable.h"

using namespace semisparse;
using test::Guarded;
using test::Random;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  layernorm::Function normalize;
};

const Listed kKernels[] = {
#define SEMISPARSE_LAYERNORM(isa) {#isa, "layernorm_" #isa, layernorm::layernorm_##isa},
#include "kernels/layernorm/kernels.inc"
#undef SEMISPARSE_LAYERNORM
};

void check_rows(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  layernorm::Rows rows{};
  rows.count = random.size(0, 9);
  rows.channels = random.size(1, random.chance(0.3) ? 800 : 70);
  rows.epsilon = random.chance(0.5) ? 1e-5f : 1e-6f;
  std::vector<uint32_t> positions;
  if (random.chance(0.5)) {
    positions = test::destinations(rows.count + 1, random);
    positions.pop_back();
    rows.positions = positions.data();
  } else {
    rows.first = random.size(0, 3);
  }
  size_t plane = rows.first + rows.count;
  for (const uint32_t position : positions) plane = std::max<size_t>(plane, position + 1);
  test::context = std::string(kernel.name) + " channels=" + std::to_string(rows.channels) +
                  " count=" + std::to_string(rows.count) + " seed=" + std::to_string(seed);

  Guarded<float> x(plane * rows.channels, random);
  Guarded<float> scale(rows.channels, random);
  Guarded<float> shift(rows.channels, random);
  test::fill(scale, random, true);
  test::fill(shift, random, true);
  // Far from zero, where sums of squares would have no digits left; or constant.
  const auto mean = static_cast<float>(random.chance(0.3) ? random.between(-100, 100) : 0);
  const double spread = random.chance(0.1) ? 0 : 1;
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = mean + static_cast<float>(spread * static_cast<double>(random.between(-999, 999)) / 500);
  }
  const bool finite = x.size() == 0 || random.chance(0.8);
  const size_t spoiled = finite ? 0 : random.size(0, x.size() - 1);
  if (!finite) x[spoiled] = random.chance(0.5) ? INFINITY : NAN;
  Guarded<float> got(x.size(), random);
  Guarded<float> want(x.size(), random);
  for (size_t i = 0; i < x.size(); ++i) got[i] = want[i] = -77;
  rows.x = x.data();
  rows.scale = scale.data();
  rows.shift = shift.data();
  rows.y = got.data();
  kernel.normalize(rows);
  rows.y = want.data();
  layernorm::reference(rows);
  for (size_t i = 0; i < x.size(); ++i) {
    // What is off by a rounding of the mean is divided by the deviation, or by sqrt(epsilon).
    const double deviation = spread == 0 ? std::sqrt(rows.epsilon) : 0.1;
    const double scales = std::abs(static_cast<double>(scale[i % rows.channels]));
    const double limit = 1e-6 * (1 + std::abs(static_cast<double>(want[i]))) +
                         scales * 4e-7 * std::abs(static_cast<double>(mean)) / deviation +
                         scales * 4e-6;
    CHECK(test::same(got[i], want[i]) || std::abs(got[i] - want[i]) <= limit);
  }
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(1000); ++i) check_rows(kernel, i);
  });
}
