// Every epilogue kernel against the reference: the clamp to the bit, the activations within a
// stated error, over the whole range of floats.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/epilogue/epilogue.h"
#include "kernels/epilogue/reference.h"
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
  epilogue::Copy copy;
  epilogue::Clamp clamp;
  epilogue::Activate leaky_relu, silu, hard_swish, sigmoid;
};

const Listed kKernels[] = {
#define SEMISPARSE_EPILOGUE(isa) \
  {#isa,                         \
   "epilogue_" #isa,             \
   epilogue::copy_##isa,         \
   epilogue::clamp_##isa,        \
   epilogue::leaky_relu_##isa,   \
   epilogue::silu_##isa,         \
   epilogue::hard_swish_##isa,   \
   epilogue::sigmoid_##isa},
#include "kernels/epilogue/kernels.inc"
#undef SEMISPARSE_EPILOGUE
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUlp = 0x1p-23;
constexpr double kLeast = 0x1p-149;  // below it lies only zero

void check_copy(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  const size_t n = random.size(1, 80);
  const size_t ldy = n + (random.chance(0.5) ? 0 : random.size(1, 9));
  const size_t count = random.size(0, 30);
  test::context =
      std::string(kernel.name) + " copy n=" + std::to_string(n) + " count=" + std::to_string(count);
  // Sources below 10, destinations from 10 on, each once.
  std::vector<epilogue::Pair> pairs;
  for (size_t i = 0; i < count; ++i) {
    pairs.push_back({static_cast<uint32_t>(random.size(0, 9)), static_cast<uint32_t>(10 + i)});
  }
  Guarded<float> got((10 + count - 1) * ldy + n, random);
  Guarded<float> want(got.size(), random);
  test::fill(got, random, false);
  test::copy(got, want);
  kernel.copy(pairs.data(), count, got.data(), ldy, n);
  for (const epilogue::Pair& pair : pairs) {
    for (size_t j = 0; j < n; ++j) want[pair.dest * ldy + j] = want[pair.source * ldy + j];
  }
  test::check_same(got, want);
}

void check_clamp(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  const size_t n = random.size(1, 80);
  test::context = std::string(kernel.name) + " clamp n=" + std::to_string(n);
  Guarded<float> bias(n, random);
  Guarded<float> residual(n, random);
  Guarded<float> got(n, random);
  Guarded<float> want(n, random);
  test::fill(bias, random, true);
  test::fill(residual, random, false);
  const bool add = random.chance(0.5);
  const float lo = random.chance(0.5) ? -kInfinity : 0;
  const float hi = random.chance(0.5) ? kInfinity : 6;
  kernel.clamp(bias.data(), add ? residual.data() : nullptr, got.data(), n, lo, hi);
  for (size_t i = 0; i < n; ++i) {
    const double sum = bias[i] + (add ? static_cast<double>(residual[i]) : 0.0);
    want[i] = static_cast<float>(epilogue::reference_clamp(sum, lo, hi));
  }
  test::check_same(got, want);
}

// All of [-100, 100] finely, then powers of two up to the largest, then what is no number.
std::vector<float> arguments() {
  std::vector<float> all;
  const auto steps = static_cast<int>(test::rounds(50000));
  for (int i = -steps; i <= steps; ++i) {
    all.push_back(static_cast<float>(100.0 * i / steps));
  }
  for (int e = -149; e <= 127; ++e) {
    all.push_back(std::ldexp(1.0f, e));
    all.push_back(-std::ldexp(1.0f, e));
  }
  all.push_back(0.0f);
  all.push_back(-0.0f);
  all.push_back(kInfinity);
  all.push_back(-kInfinity);
  all.push_back(NAN);
  return all;
}

// `error` is the largest error allowed at an argument where the reference is `want`.
void check_activation(const char* name, epilogue::Activate activate, float a,
                      const std::function<double(double)>& reference,
                      const std::function<double(double x, double want)>& error) {
  const std::vector<float> all = arguments();
  Random random(1);
  for (size_t from = 0; from < all.size();) {
    // Lengths of every remainder, so that the tail is the kernel's own and not a lucky vector.
    const size_t n = std::min(all.size() - from, random.size(1, 80));
    Guarded<float> y(n, random);
    for (size_t i = 0; i < n; ++i) y[i] = all[from + i];
    activate(y.data(), n, a);
    for (size_t i = 0; i < n; ++i) {
      const double x = all[from + i];
      const double want = reference(x);
      const bool good = std::isfinite(want) ? std::abs(y[i] - want) <= error(x, want)
                                            : test::same(y[i], static_cast<float>(want));
      if (good) continue;
      test::context = std::string(name) + " of " + std::to_string(x) + ": got " +
                      std::to_string(y[i]) + ", want " + std::to_string(want);
      CHECK(good);
    }
    from += n;
  }
}

void check_activations(const Listed& kernel) {
  const std::string name = kernel.name;
  // x and the slope are floats, so their product is rounded once on both sides.
  check_activation(
      (name + " leaky_relu").c_str(), kernel.leaky_relu, 0.1f,
      [](double v) { return static_cast<float>(epilogue::reference_leaky_relu(v, 0.1f)); },
      [](double, double) { return 0.0; });
  // Below -87 the kernel holds the sigmoid at e^-87, which is less than 2^-125.
  check_activation((name + " sigmoid").c_str(), kernel.sigmoid, 0, epilogue::reference_sigmoid,
                   [](double, double want) { return 2 * kUlp * want + 0x1p-125; });
  check_activation((name + " silu").c_str(), kernel.silu, 0, epilogue::reference_silu,
                   [](double x, double want) {
                     return 3 * kUlp * std::abs(want) + 0x1p-125 * (1 + std::abs(x));
                   });
  // The gate v / 6 + 0.5 has rounding errors of its terms' size, also where it is nearly zero.
  check_activation((name + " hard_swish").c_str(), kernel.hard_swish, 0,
                   epilogue::reference_hard_swish, [](double x, double want) {
                     return kUlp * std::abs(want) + kUlp * std::abs(std::clamp(x, -4.0, 4.0)) +
                            kLeast;
                   });
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(500); ++i) check_clamp(kernel, i);
    for (size_t i = 0; i < test::rounds(200); ++i) check_copy(kernel, i);
    check_activations(kernel);
  });
}
