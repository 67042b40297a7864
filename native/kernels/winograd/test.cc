// Every pair of Winograd transforms against the reference, on random tiles.
#include <limits>
#include <string>
#include <vector>

#include "kernels/winograd/reference.h"
#include "kernels/winograd/winograd.h"
#include "tests/check.h"
#include "tests/guarded.h"
#include "tests/usable.h"

using namespace semisparse;
using test::Guarded;
using test::Random;
using winograd::Entry;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  winograd::InputFunction input;
  winograd::OutputFunction output;
  size_t outputs;
  winograd::InputFunction reference_input;
  winograd::OutputFunction reference_output;
};

const Listed kKernels[] = {
#define SEMISPARSE_WINOGRAD(isa, t)             \
  {#isa,                                        \
   "winograd_" #isa "_" #t "x" #t,              \
   winograd::winograd_input_##isa##_##t##x##t,  \
   winograd::winograd_output_##isa##_##t##x##t, \
   t,                                           \
   winograd::reference<t>,                      \
   winograd::reference<t>},
#include "kernels/winograd/kernels.inc"
#undef SEMISPARSE_WINOGRAD
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kWidestVector = 16;

void check_input(const Listed& kernel, uint64_t seed) {
  const size_t products = winograd::products_of(kernel.outputs);
  Random random(seed);
  const size_t channels = random.size(1, random.chance(0.3) ? 150 : 20);
  test::context = std::string(kernel.name) + " input channels=" + std::to_string(channels) +
                  " seed=" + std::to_string(seed);
  Guarded<float> x(channels + random.size(0, 300), random);
  test::fill(x, random, true);
  std::vector<const float*> pixels(products);
  for (const float*& pixel : pixels) pixel = x.data() + random.size(0, x.size() - channels);
  pixels[random.size(0, products - 1)] = x.data() + x.size() - channels;

  Guarded<float> got(products * channels, random);
  Guarded<float> want(got.size(), random);
  kernel.input({pixels.data(), channels, got.data()});
  kernel.reference_input({pixels.data(), channels, want.data()});
  test::check_same(got, want);
}

void check_output(const Listed& kernel, uint64_t seed) {
  const size_t products = winograd::products_of(kernel.outputs);
  const size_t slots = kernel.outputs * kernel.outputs;
  Random random(seed);
  winograd::Output tile{};
  tile.n = random.size(1, random.chance(0.3) ? 64 : 20);
  const size_t whole = (tile.n + kWidestVector - 1) / kWidestVector * kWidestVector;
  tile.stride = whole + random.size(0, 20);
  tile.ldy = tile.n + (random.chance(0.5) ? 0 : random.size(1, 9));
  tile.count = random.chance(0.3) ? slots : random.size(1, 40);
  test::context = std::string(kernel.name) + " output n=" + std::to_string(tile.n) +
                  " entries=" + std::to_string(tile.count) + " seed=" + std::to_string(seed);

  Guarded<float> m((products - 1) * tile.stride + whole, random);
  test::fill(m, random, true);
  const bool finite = random.chance(0.7);
  if (!finite) {
    const float values[] = {NAN, kInfinity, -kInfinity};
    m[random.size(0, products - 1) * tile.stride + random.size(0, tile.n - 1)] =
        values[random.size(0, 2)];
  }
  tile.m = m.data();
  Guarded<float> bias(whole, random);
  test::fill(bias, random, true);
  tile.bias = bias.data();

  // Every place once: the last of them is the array's end.
  const size_t places = tile.count + random.size(0, 9);
  std::vector<Entry> entries;
  for (size_t i = 0; i < tile.count; ++i) {
    entries.push_back(
        {static_cast<uint32_t>(random.size(0, slots - 1)), static_cast<uint32_t>(places - 1 - i)});
  }
  tile.entries = entries.data();
  const size_t plane = (places - 1) * tile.ldy + tile.n;
  Guarded<float> residual(plane, random);
  test::fill(residual, random, random.chance(0.7));
  if (random.chance(0.5)) tile.residual = residual.data();
  tile.lo = random.chance(0.5) ? -kInfinity : 0;
  tile.hi = random.chance(0.7) ? kInfinity : 6;

  Guarded<float> got(plane, random);
  Guarded<float> want(plane, random);
  test::fill(got, random, true);
  test::copy(got, want);
  tile.y = got.data();
  CHECK_EQUAL(kernel.output(tile), finite);
  tile.y = want.data();
  CHECK_EQUAL(kernel.reference_output(tile), finite);
  if (finite) test::check_same(got, want);
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(1000); ++i) {
      check_input(kernel, i);
      check_output(kernel, i);
    }
  });
}
