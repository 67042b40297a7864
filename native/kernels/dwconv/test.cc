// Every depthwise kernel against the reference, on random strips.
#include <limits>
#include <string>

#include "kernels/dwconv/dwconv.h"
#include "kernels/dwconv/reference.h"
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
  dwconv::Function run;
};

const Listed kKernels[] = {
#define SEMISPARSE_DWCONV(isa) {#isa, "dwconv_" #isa, dwconv::dwconv_##isa},
#include "kernels/dwconv/kernels.inc"
#undef SEMISPARSE_DWCONV
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_strip(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  dwconv::Strip strip{};
  strip.m = random.size(1, 20);
  strip.taps = random.chance(0.5) ? 9 : random.size(1, 26);
  strip.channels = random.size(1, random.chance(0.3) ? 150 : 20);
  strip.ldw = (strip.channels + 15) / 16 * 16;  // whole vectors of any instruction set
  strip.ldy = strip.channels + (random.chance(0.5) ? 0 : random.size(1, 9));
  test::context = std::string(kernel.name) + " m=" + std::to_string(strip.m) +
                  " taps=" + std::to_string(strip.taps) +
                  " channels=" + std::to_string(strip.channels) + " seed=" + std::to_string(seed);

  const bool finite = random.chance(0.7);
  Guarded<float> input(strip.channels + random.size(0, 200), random);
  test::fill(input, random, finite);
  const test::Rows rows(input, strip.m, strip.taps, strip.channels, random);
  strip.rows = rows.pointers.data();
  strip.offsets = rows.offsets();

  Guarded<float> weights(strip.taps * strip.ldw, random);
  test::fill(weights, random, true);
  strip.weights = weights.data();
  Guarded<float> bias(strip.ldw, random);
  test::fill(bias, random, true);
  strip.bias = bias.data();

  const std::vector<uint32_t> places = test::destinations(strip.m, random);
  strip.dests = places.data();
  const size_t plane = (places.size() - 1) * strip.ldy + strip.channels;
  Guarded<float> residual(plane, random);
  test::fill(residual, random, finite);
  if (random.chance(0.5)) strip.residual = residual.data();
  strip.lo = random.chance(0.5) ? -kInfinity : 0;
  strip.hi = random.chance(0.7) ? kInfinity : 6;

  Guarded<float> got(plane, random);
  Guarded<float> want(plane, random);
  test::fill(got, random, true);
  test::copy(got, want);
  strip.y = got.data();
  kernel.run(strip);
  strip.y = want.data();
  dwconv::reference(strip);
  test::check_same(got, want);
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(1000); ++i) check_strip(kernel, i);
  });
}
