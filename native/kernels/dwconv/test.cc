// Every depthwise kernel against the reference, on random strips.
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

// Positions of a plane, mostly beside one another, and a filter's taps in rows and columns from
// each; in pointers of their own for every tap, some may read somewhere else, as beyond an edge.
struct Grid {
  Grid(Guarded<float>& input, const dwconv::Strip& strip, size_t pixel, Random& random) {
    const size_t columns = strip.columns;
    const size_t step = pixel * random.size(1, 2);
    const size_t row = step * columns + random.size(0, 3 * pixel);
    for (size_t t = 0; t < strip.taps; ++t) {
      offsets.push_back(static_cast<std::ptrdiff_t>(t / columns * row + t % columns * step));
    }
    const size_t last = input.size() - strip.channels - static_cast<size_t>(offsets.back());
    size_t place = random.size(0, last);
    for (size_t i = 0; i < strip.m; ++i) {
      pointers.push_back(input.data() + place);
      place += step;
      if (place > last || random.chance(0.1)) place = random.size(0, last);
    }
    if (random.chance(0.5)) return;
    std::vector<const float*> taps;
    const double astray = random.chance(0.5) ? 0 : 0.01;
    for (const float* pointer : pointers) {
      for (const std::ptrdiff_t offset : offsets) {
        taps.push_back(random.chance(astray) ? input.data() : pointer + offset);
      }
    }
    pointers = std::move(taps);
    offsets.clear();
  }

  std::vector<const float*> pointers;
  std::vector<std::ptrdiff_t> offsets;
};

void check_strip(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  dwconv::Strip strip{};
  const bool grid = random.chance(0.5);
  strip.m = random.size(1, random.chance(0.05) ? 600 : 20);
  strip.taps = random.chance(0.5) ? 9 : random.size(1, 26);
  if (grid) {
    strip.columns = random.chance(0.8) ? 3 + 2 * random.size(0, 2) : random.size(1, 8);
    strip.taps = strip.columns * (random.chance(0.6) ? strip.columns : random.size(1, 8));
  }
  strip.channels = random.size(1, random.chance(0.3) ? 150 : 20);
  strip.ldw = (strip.channels + 15) / 16 * 16;  // whole vectors of any instruction set
  strip.ldy = strip.channels + (random.chance(0.5) ? 0 : random.size(1, 9));
  test::context = std::string(kernel.name) + " m=" + std::to_string(strip.m) +
                  " taps=" + std::to_string(strip.taps) +
                  " channels=" + std::to_string(strip.channels) + " seed=" + std::to_string(seed);

  const bool finite = random.chance(0.7);
  const size_t pixel = grid ? strip.channels + random.size(0, 5) : 1;
  const size_t spare = grid
                           ? 10 * (2 * strip.columns + 3) * pixel * (1 + strip.taps / strip.columns)
                           : random.size(0, 200);
  Guarded<float> input(strip.channels + spare, random);
  test::fill(input, random, finite);
  std::optional<Grid> in_grid;
  std::optional<test::Rows> anywhere;
  if (grid) {
    const Grid& rows = in_grid.emplace(input, strip, pixel, random);
    strip.rows = rows.pointers.data();
    strip.offsets = rows.offsets.empty() ? nullptr : rows.offsets.data();
  } else {
    const test::Rows& rows = anywhere.emplace(input, strip.m, strip.taps, strip.channels, random);
    strip.rows = rows.pointers.data();
    strip.offsets = rows.offsets();
  }

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
