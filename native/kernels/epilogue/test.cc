// Every epilogue kernel against the reference: what is spread to the bit, the activations within a
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
#include "tests/operands.h"
#include "tests/usable.h"

using namespace semisparse;
using test::Guarded;
using test::Random;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  epilogue::SpreadFunction spread;
  epilogue::MeanFunction mean;
  epilogue::Activate leaky_relu, silu, hard_swish, sigmoid, hard_sigmoid, gelu;
};

const Listed kKernels[] = {
#define SEMISPARSE_EPILOGUE(isa) \
  {#isa,                         \
   "epilogue_" #isa,             \
   epilogue::spread_##isa,       \
   epilogue::mean_##isa,         \
   epilogue::leaky_relu_##isa,   \
   epilogue::silu_##isa,         \
   epilogue::hard_swish_##isa,   \
   epilogue::sigmoid_##isa,      \
   epilogue::hard_sigmoid_##isa, \
   epilogue::gelu_##isa},
#include "kernels/epilogue/kernels.inc"
#undef SEMISPARSE_EPILOGUE
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUlp = 0x1p-23;
constexpr double kLeast = 0x1p-149;  // below it lies only zero

// entry_of(dest, row) draws an entry that reads rows that row() draws; linear_of(rows, entry, j) is
// its linear part.
template <typename Entry, typename EntryOf, typename LinearOf>
void check_rows(const std::string& name, void (*kernel)(const epilogue::Rows<Entry>&),
                uint64_t seed, Random& random, const EntryOf& entry_of, const LinearOf& linear_of) {
  const size_t n = random.size(1, 80);
  const size_t count = random.size(0, 30);
  const bool in_place = random.chance(0.3);  // of rows of y: the first ten, or their own
  const bool add = random.chance(0.5);
  epilogue::Rows<Entry> rows{};
  rows.n = n;
  rows.count = count;
  rows.ldy = n + (random.chance(0.5) ? 0 : random.size(1, 9));
  rows.ldl = in_place ? rows.ldy : random.chance(0.3) ? 0 : n + random.size(0, 9);
  rows.lo = random.chance(0.5) ? -kInfinity : 0;
  rows.hi = random.chance(0.5) ? kInfinity : 6;
  test::context = name + " n=" + std::to_string(n) + " count=" + std::to_string(count) +
                  (add ? " residual" : "") + (in_place ? " in place" : "") +
                  " seed=" + std::to_string(seed);

  // Other sources below 10, destinations from 10 on, each once and in no order.
  std::vector<Entry> entries;
  for (const uint32_t dest : test::destinations(count + 1, random)) {
    entries.push_back(entry_of(10 + dest, [&] {
      const bool own = in_place && random.chance(0.4);
      return own ? 10 + dest : static_cast<uint32_t>(random.size(0, 9));
    }));
  }
  entries.resize(count);
  rows.entries = entries.data();
  Guarded<float> linear(9 * rows.ldl + n, random);
  Guarded<float> got((14 + 2 * count) * rows.ldy + n, random);  // the last dest may be its end
  Guarded<float> residual(got.size(), random);
  Guarded<float> want(got.size(), random);
  test::fill(linear, random, false);
  test::fill(got, random, false);
  test::fill(residual, random, false);
  test::copy(got, want);
  rows.linear = in_place ? got.data() : linear.data();
  rows.residual = add ? residual.data() : nullptr;
  rows.y = got.data();
  for (const Entry& entry : entries) {
    for (size_t j = 0; j < n; ++j) {
      const size_t at = entry.dest * rows.ldy + j;
      const double sum =
          linear_of(rows, entry, j) + (add ? static_cast<double>(residual[at]) : 0.0);
      want[at] = static_cast<float>(epilogue::reference_clamp(sum, rows.lo, rows.hi));
    }
  }
  kernel(rows);
  test::check_same(got, want);
}

void check_spread(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  check_rows<epilogue::Pair>(
      std::string(kernel.name) + " spread", kernel.spread, seed, random,
      [](uint32_t dest, const auto& row) { return epilogue::Pair{row(), dest}; },
      [](const epilogue::Spread& rows, const epilogue::Pair& pair, size_t j) {
        return static_cast<double>(rows.linear[pair.source * rows.ldl + j]);
      });
}

void check_mean(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  check_rows<epilogue::Mean>(
      std::string(kernel.name) + " mean", kernel.mean, seed, random,
      // Sums of eighths with weights of eighths are exact.
      [&](uint32_t dest, const auto& row) {
        return epilogue::Mean{row(), row(), dest, static_cast<float>(random.between(0, 8)) / 8};
      },
      [](const epilogue::MeanRows& rows, const epilogue::Mean& mean, size_t j) {
        const double w = mean.weight;
        return (1 - w) * rows.linear[mean.first * rows.ldl + j] +
               w * rows.linear[mean.second * rows.ldl + j];
      });
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
    // Lengths of every remainder, so that the tail is the kernel's own and not a lucky vector; some
    // rows in any order, at places by themselves or in a list of entries.
    const size_t n = random.size(1, 80);
    const size_t count = random.size(1, 5);
    const size_t step = random.size(1, 3);
    const size_t ldy = n + random.size(0, 3);
    const std::vector<uint32_t> places = test::destinations(count, random);
    std::vector<uint32_t> dests(count * step, 77);
    for (size_t i = 0; i < count; ++i) dests[i * step] = places[i];
    Guarded<float> y((places.size() - 1) * ldy + n, random);
    for (size_t i = 0; i < y.size(); ++i) y[i] = -77;
    std::vector<float> given(y.size(), NAN);
    std::vector<bool> used(y.size());
    for (size_t i = 0; i < count; ++i) {
      for (size_t j = 0; j < n; ++j) {
        const size_t at = places[i] * ldy + j;
        y[at] = given[at] = all[std::min(from++, all.size() - 1)];
        used[at] = true;
      }
    }
    activate({dests.data(), step, count, y.data(), ldy, n}, a);
    for (size_t i = 0; i < y.size(); ++i) {
      if (!used[i]) {
        CHECK_EQUAL(y[i], -77.0f);
        continue;
      }
      const double x = given[i];
      const double want = reference(x);
      const bool good = std::isfinite(want) ? std::abs(y[i] - want) <= error(x, want)
                                            : test::same(y[i], static_cast<float>(want));
      if (good) continue;
      test::context = std::string(name) + " of " + std::to_string(x) + ": got " +
                      std::to_string(y[i]) + ", want " + std::to_string(want);
      CHECK(good);
    }
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
  check_activation((name + " gelu").c_str(), kernel.gelu, 0, epilogue::reference_gelu,
                   [](double x, double) { return 2.5e-7 * std::abs(x) + kLeast; });
  check_activation(
      (name + " hard_sigmoid").c_str(), kernel.hard_sigmoid, 0, epilogue::reference_hard_sigmoid,
      [](double x, double) { return kUlp * (0.5 + std::abs(std::clamp(x, -4.0, 4.0)) / 4); });
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
    for (size_t i = 0; i < test::rounds(700); ++i) check_spread(kernel, i);
    for (size_t i = 0; i < test::rounds(700); ++i) check_mean(kernel, i);
    check_activations(kernel);
  });
}
