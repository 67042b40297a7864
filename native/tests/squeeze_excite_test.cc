// Random squeeze and excitation through the C API against the textbook's loop, on every instruction
// set, serially and on threads.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "tests/activation.h"
#include "tests/api.h"
#include "tests/guarded.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

struct DestroySqueezeExcite {
  void operator()(semisparse_squeeze_excite* handle) const {
    semisparse_squeeze_excite_destroy(handle);
  }
};
using Handle = std::unique_ptr<semisparse_squeeze_excite, DestroySqueezeExcite>;

// One of the two layers.
struct Layer {
  semisparse_conv_desc desc{};
  std::vector<float> weights, bias;

  Layer(Random& random, int64_t inputs, int64_t outputs, semisparse_activation activation) {
    desc.in_channels = inputs;
    desc.out_channels = outputs;
    desc.group = 1;
    for (int i = 0; i < 2; ++i) desc.kernel[i] = desc.strides[i] = desc.dilations[i] = 1;
    desc.activation = activation;
    for (int64_t i = 0; i < inputs * outputs; ++i) weights.push_back(quarter(random));
    if (random.chance(0.8)) {
      for (int64_t i = 0; i < outputs; ++i) bias.push_back(quarter(random));
    }
  }

  static float quarter(Random& random) { return static_cast<float>(random.between(-4, 4)) / 4; }

  semisparse_chain_stage argument() const {
    return {&desc, weights.data(), bias.empty() ? nullptr : bias.data(), nullptr, nullptr, 0, 0};
  }

  std::vector<double> run(const std::vector<double>& x) const {
    std::vector<double> y;
    for (size_t o = 0; o < static_cast<size_t>(desc.out_channels); ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (size_t c = 0; c < x.size(); ++c) sum += weights[o * x.size() + c] * x[c];
      y.push_back(activated(desc, sum));
    }
    return y;
  }
};

void check(uint64_t seed, ThreadPool& pool, const std::vector<std::string>& isas) {
  Random random(seed);
  const int64_t channels = random.chance(0.1) ? random.between(600, 1300) : random.between(1, 200);
  const int64_t squeezed = random.between(1, 60);
  const int64_t batch = random.chance(0.7) ? 1 : random.between(0, 3);
  const int64_t most = random.chance(0.2) ? 60 : 14;
  const int64_t height = random.between(1, most);
  const int64_t width = random.between(1, most);
  const bool scales = random.chance(0.5);
  const Layer squeeze(random, channels, squeezed,
                      random.chance(0.5) ? SEMISPARSE_RELU : SEMISPARSE_SILU);
  const Layer excite(random, squeezed, channels,
                     random.chance(0.5) ? SEMISPARSE_SIGMOID : SEMISPARSE_HARD_SIGMOID);
  const semisparse_chain_stage stages[] = {squeeze.argument(), excite.argument()};
  const auto positions = static_cast<size_t>(height * width);
  const auto row = static_cast<size_t>(channels);

  Guarded<float> x(static_cast<size_t>(batch) * positions * row, random);
  for (size_t i = 0; i < x.size(); ++i) x[i] = Layer::quarter(random);
  std::vector<double> want;
  for (size_t n = 0; n < static_cast<size_t>(batch); ++n) {
    std::vector<double> means(row);
    for (size_t i = 0; i < positions * row; ++i) means[i % row] += x[n * positions * row + i];
    for (double& mean : means) mean /= static_cast<double>(positions);
    const std::vector<double> gates = excite.run(squeeze.run(means));
    for (size_t i = 0; i < (scales ? positions * row : row); ++i) {
      want.push_back(scales ? x[n * positions * row + i] * gates[i % row] : gates[i]);
    }
  }
  for (const std::string& isa : isas) {
    context = std::to_string(channels) + " to " + std::to_string(squeezed) + " at " +
              std::to_string(height) + "x" + std::to_string(width) + " seed " +
              std::to_string(seed) + " " + isa;
    semisparse_squeeze_excite* created = nullptr;
    CHECK_OK(semisparse_squeeze_excite_create(stages, scales, isa.c_str(), &created));
    const Handle handle(created);
    std::vector<float> serially;
    for (const bool threads : {false, true}) {
      Guarded<float> got(want.size(), random);
      for (size_t i = 0; i < got.size(); ++i) got[i] = -77;  // what is forgotten shows
      CHECK_OK(semisparse_squeeze_excite_run(
          handle.get(), x.data(), batch, height, width, got.data(),
          threads ? ThreadPool::parallel_for : nullptr, threads ? &pool : nullptr));
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(std::abs(got[i] - want[i]) <= 1e-5 * (1 + std::abs(want[i])));
        if (threads) CHECK_EQUAL(got[i], serially[i]);
        serially.push_back(got[i]);
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
