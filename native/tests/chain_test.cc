// Random chains through the C API against the textbook's loop, stage by stage, on every instruction
// set, serially and on threads.
#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "tests/activation.h"
#include "tests/api.h"
#include "tests/guarded.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

struct DestroyChain {
  void operator()(semisparse_chain* chain) const { semisparse_chain_destroy(chain); }
};
using ChainHandle = std::unique_ptr<semisparse_chain, DestroyChain>;

enum class Masks { kNone, kBias, kNearest, kMean };

struct Plane {
  int64_t height, width;
  size_t positions() const { return static_cast<size_t>(height * width); }
};

// One convolution of a chain.
struct Stage {
  semisparse_conv_desc desc;
  Plane in, out;
  std::vector<float> weights, bias;
  std::vector<int32_t> source;  // empty: dense
  std::vector<float> weight;    // of second sources; empty: there are none

  semisparse_chain_stage argument() const {
    return {&desc,
            weights.data(),
            bias.empty() ? nullptr : bias.data(),
            source.empty() ? nullptr : source.data(),
            weight.empty() ? nullptr : weight.data(),
            out.height,
            out.width};
  }
};

struct Problem {
  explicit Problem(Random& random);

  bool has_stem() const {
    return form == SEMISPARSE_STEM_DEPTHWISE_PROJECT || form == SEMISPARSE_STEM_DEPTHWISE;
  }
  bool projects() const {
    return form != SEMISPARSE_EXPAND_DEPTHWISE && form != SEMISPARSE_STEM_DEPTHWISE;
  }
  void add(Random& random, int64_t group, int64_t outputs);
  void draw_mask(Random& random, Stage& stage, const std::vector<double>& score);
  std::string text() const;
  ChainHandle create(const char* isa) const;
  std::vector<double> reference(Guarded<float>& x) const;

  semisparse_chain_form form;
  Masks masks;
  bool aligned;
  int64_t block;
  double sparsity;
  int64_t batch;
  std::vector<Stage> stages;
  std::optional<Guarded<float>> residual;
};

Problem::Problem(Random& random) {
  form = static_cast<semisparse_chain_form>(random.between(0, 4));
  masks = static_cast<Masks>(random.between(0, 3));
  aligned = random.chance(0.7);
  block = random.chance(0.5) ? 1 : random.between(2, 4);
  sparsity = random.chance(0.1) ? 1 : static_cast<double>(random.between(0, 9)) / 10;
  batch = random.chance(0.7) ? 1 : random.between(2, 3);
  // Wide planes run in bands, small ones stage by stage.
  const bool wide = random.chance(0.5);
  const int64_t channels = wide ? random.between(60, 150) : random.between(1, 70);
  const auto side = [&] { return wide ? random.between(30, 60) : random.between(1, 12); };
  Stage first{};
  first.out = {side(), side()};
  stages.push_back(first);  // what the first stage reads
  if (form != SEMISPARSE_DEPTHWISE_PROJECT) {
    stages.back().desc.out_channels = random.between(1, has_stem() ? 5 : 40);
    add(random, 1, channels);
  } else {
    stages.back().desc.out_channels = channels;
  }
  add(random, channels, channels);
  if (projects()) {
    add(random, 1, random.between(1, 40));
    stages.back().desc.activation = random.chance(0.8) ? SEMISPARSE_IDENTITY : SEMISPARSE_RELU;
    const auto floats = static_cast<size_t>(batch * stages.back().desc.out_channels);
    if (random.chance(0.4)) {
      fill(residual.emplace(floats * stages.back().out.positions(), random), random, true);
    }
  }
  stages.erase(stages.begin());
}

// A convolution behind the last one; pointwise unless it is a stem or the depthwise one.
void Problem::add(Random& random, int64_t group, int64_t outputs) {
  Stage stage{};
  semisparse_conv_desc& d = stage.desc;
  stage.in = stages.back().out;
  d.in_channels = stages.back().desc.out_channels;
  d.out_channels = outputs;
  d.group = group;
  const int64_t sizes[2] = {stage.in.height, stage.in.width};
  int64_t out[2];
  const bool stem = has_stem() && stages.size() == 1;
  const bool depthwise = stages.size() == (form == SEMISPARSE_DEPTHWISE_PROJECT ? 1 : 2);
  if (stem) d.input_layout = SEMISPARSE_NCHW;
  for (int i = 0; i < 2; ++i) {
    d.kernel[i] = d.strides[i] = d.dilations[i] = 1;
    if (stem || depthwise) {
      d.kernel[i] = random.chance(0.6) ? 3 : random.between(1, 5);
      d.strides[i] = random.between(1, random.chance(0.9) ? 2 : 3);
      d.dilations[i] = random.chance(0.8) ? 1 : 2;
      d.pads[i] = random.between(0, 3);
      d.pads[i + 2] = random.between(0, 3);
    }
    int64_t room;
    while ((room = sizes[i] + d.pads[i] + d.pads[i + 2] - (d.kernel[i] - 1) * d.dilations[i] - 1) <
           0) {
      ++d.pads[i];
    }
    out[i] = room / d.strides[i] + 1;
  }
  stage.out = {out[0], out[1]};
  d.activation = static_cast<semisparse_activation>(random.between(0, 3));
  if (d.activation == SEMISPARSE_CLIP) {
    d.activation_b = 6;
  } else if (d.activation == SEMISPARSE_LEAKY_RELU) {
    d.activation_a = 0.125f;
  }
  // Of small values, so that the sums of three stages are exact.
  const auto draw = [&](std::vector<float>& values, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      values.push_back(static_cast<float>(random.between(-2, 2)) / 2);
    }
  };
  draw(stage.weights, outputs * d.in_channels / group * d.kernel[0] * d.kernel[1]);
  if (random.chance(0.8)) draw(stage.bias, outputs);
  if (masks != Masks::kNone && random.chance(0.85)) {
    // Aligned masks have one score for every place, whatever the plane's size.
    std::vector<double> score;
    Random own(aligned ? 7 : static_cast<uint64_t>(random.between(0, 1 << 20)));
    for (int i = 0; i < 64 * 64; ++i) score.push_back(own.chance(sparsity) ? 0 : 1);
    draw_mask(random, stage, score);
  }
  stages.push_back(std::move(stage));
}

void Problem::draw_mask(Random& random, Stage& stage, const std::vector<double>& score) {
  std::vector<uint8_t> mask;
  for (int64_t y = 0; y < stage.out.height; ++y) {
    for (int64_t x = 0; x < stage.out.width; ++x) {
      const auto at = static_cast<size_t>(y / block % 64 * 64 + x / block % 64);
      mask.push_back(score[at] > 0 ? 1 : 0);
    }
  }
  if (masks != Masks::kBias) mask[random.size(0, mask.size() - 1)] = 1;
  if (masks == Masks::kMean) {
    stage.source.resize(2 * mask.size());
    stage.weight.resize(mask.size());
    CHECK_OK(semisparse_mean_sources(mask.data(), stage.out.height, stage.out.width,
                                     stage.source.data(), stage.weight.data()));
    return;
  }
  stage.source.resize(mask.size());
  const semisparse_fill fill =
      masks == Masks::kBias ? SEMISPARSE_FILL_BIAS : SEMISPARSE_FILL_NEAREST;
  CHECK_OK(semisparse_source_map(mask.data(), stage.out.height, stage.out.width, fill,
                                 stage.source.data()));
}

std::string Problem::text() const {
  std::string all = "form " + std::to_string(static_cast<int>(form)) + " masks " +
                    std::to_string(static_cast<int>(masks)) + " sparsity " +
                    std::to_string(sparsity) + " block " + std::to_string(block) +
                    (aligned ? " aligned" : "") + " batch " + std::to_string(batch) +
                    (residual ? " residual" : "");
  for (const Stage& stage : stages) {
    const semisparse_conv_desc& d = stage.desc;
    all += "; " + std::to_string(d.in_channels) + "->" + std::to_string(d.out_channels) +
           " kernel " + std::to_string(d.kernel[0]) + "x" + std::to_string(d.kernel[1]) +
           " strides " + std::to_string(d.strides[0]) + "x" + std::to_string(d.strides[1]) + " " +
           std::to_string(stage.in.height) + "x" + std::to_string(stage.in.width) +
           (stage.source.empty() ? "" : " masked");
  }
  return all;
}

ChainHandle Problem::create(const char* isa) const {
  std::vector<semisparse_chain_stage> arguments;
  for (const Stage& stage : stages) arguments.push_back(stage.argument());
  semisparse_chain* chain = nullptr;
  CHECK_OK(semisparse_chain_create(form, arguments.data(), isa, &chain));
  int64_t out[2] = {0, 0};
  CHECK_OK(semisparse_chain_output_size(chain, stages[0].in.height, stages[0].in.width, &out[0],
                                        &out[1]));
  CHECK_EQUAL(out[0], stages.back().out.height);
  CHECK_EQUAL(out[1], stages.back().out.width);
  return ChainHandle(chain);
}

std::vector<double> run_stage(const Stage& stage, int64_t batch, const std::vector<double>& x,
                              const float* residual) {
  const semisparse_conv_desc& d = stage.desc;
  const int64_t inputs = d.in_channels / d.group;
  std::vector<double> y;
  const auto linear = [&](int64_t n, int64_t place, int64_t o) {
    double sum = 0;
    for (int64_t ky = 0; ky < d.kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < d.kernel[1]; ++kx) {
        const int64_t iy = place / stage.out.width * d.strides[0] - d.pads[0] + ky * d.dilations[0];
        const int64_t ix = place % stage.out.width * d.strides[1] - d.pads[1] + kx * d.dilations[1];
        if (iy < 0 || iy >= stage.in.height || ix < 0 || ix >= stage.in.width) continue;
        const int64_t pixel = ((n * stage.in.height + iy) * stage.in.width + ix) * d.in_channels;
        for (int64_t c = 0; c < inputs; ++c) {
          const int64_t w = ((o * inputs + c) * d.kernel[0] + ky) * d.kernel[1] + kx;
          sum += x[static_cast<size_t>(pixel + (d.group == 1 ? c : o))] *
                 stage.weights[static_cast<size_t>(w)];
        }
      }
    }
    return sum;
  };
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t p = 0; p < stage.out.height * stage.out.width; ++p) {
      const int64_t from = stage.source.empty() ? p : stage.source[static_cast<size_t>(p)];
      for (int64_t o = 0; o < d.out_channels; ++o) {
        double v = from < 0 ? 0 : linear(n, from, o);
        if (!stage.weight.empty() && from != p) {
          const double w = stage.weight[static_cast<size_t>(p)];
          const auto second = stage.out.positions() + static_cast<size_t>(p);
          v = (1 - w) * v + w * linear(n, stage.source[second], o);
        }
        if (!stage.bias.empty()) v += stage.bias[static_cast<size_t>(o)];
        if (residual != nullptr) v += residual[y.size()];
        y.push_back(activated(d, v));
      }
    }
  }
  return y;
}

std::vector<double> Problem::reference(Guarded<float>& x) const {
  std::vector<double> values(x.data(), x.data() + x.size());
  if (has_stem()) {
    const size_t plane = stages[0].in.positions();
    const size_t image = plane * static_cast<size_t>(stages[0].desc.in_channels);
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t within = i % image;
      values[i - within + within % plane * (image / plane) + within / plane] = x[i];
    }
  }
  for (const Stage& stage : stages) {
    const bool last = &stage == &stages.back();
    const Guarded<float>* added = last && residual ? &*residual : nullptr;
    values = run_stage(stage, batch, values,
                       added == nullptr ? nullptr : const_cast<Guarded<float>*>(added)->data());
  }
  return values;
}

void check_chain(uint64_t seed, ThreadPool& pool, const std::vector<std::string>& isas) {
  Random random(seed);
  Problem problem(random);
  const Stage& first = problem.stages.front();
  const std::string text = problem.text() + " seed " + std::to_string(seed);
  context = text;
  Guarded<float> x(
      first.in.positions() * static_cast<size_t>(problem.batch * first.desc.in_channels), random);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(random.between(-4, 4)) / 4;
  const std::vector<double> want = problem.reference(x);
  for (const std::string& isa : isas) {
    const ChainHandle chain = problem.create(isa.c_str());
    context = text + " " + semisparse_chain_kernel(chain.get());
    for (const bool threads : {false, true}) {
      Guarded<float> got(want.size(), random);
      for (size_t i = 0; i < got.size(); ++i) got[i] = -77;  // what is forgotten shows
      CHECK_OK(semisparse_chain_run(
          chain.get(), x.data(), problem.batch, first.in.height, first.in.width,
          problem.residual ? problem.residual->data() : nullptr, got.data(),
          threads ? ThreadPool::parallel_for : nullptr, threads ? &pool : nullptr));
      for (size_t i = 0; i < got.size(); ++i) {
        if (std::abs(got[i] - want[i]) <= 1e-5 * (1 + std::abs(want[i]))) continue;
        fail(__FILE__, __LINE__,
             "element " + std::to_string(i) + " of " + std::to_string(got.size()) + " is " +
                 std::to_string(got[i]) + ", not " + std::to_string(want[i]));
      }
    }
  }
}

}  // namespace

int main() {
  ThreadPool pool(3);
  const std::vector<std::string> isas = usable_isas();
  for (size_t i = 0; i < rounds(150); ++i) check_chain(i, pool, isas);
}
