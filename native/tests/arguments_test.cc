// Hostile arguments: each is refused with a status and a sentence, and nothing is written.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/api.h"

using namespace semisparse::test;

namespace {

constexpr int64_t kHuge[] = {INT64_MIN, -1, (int64_t{1} << 40), INT64_MAX};

void check_refused(semisparse_status got, semisparse_status want = SEMISPARSE_INVALID_ARGUMENT) {
  CHECK_EQUAL(static_cast<int>(got), static_cast<int>(want));
  const std::string error = semisparse_last_error();
  CHECK(error.size() > 10);
  CHECK(error.back() == '.');
}

// A 3x3 convolution from 2 to 4 channels on a 5x5 plane, with one thing wrong.
struct Arguments {
  semisparse_conv_desc desc{
      2, 4, 1, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, SEMISPARSE_IDENTITY, 0, 0, SEMISPARSE_NHWC};
  std::vector<float> weights = std::vector<float>(72, 0.5f);
  std::vector<float> bias = std::vector<float>(4, 1.0f);
  std::vector<int32_t> source = std::vector<int32_t>(25, 0);
  std::vector<float> weight;  // empty: NULL
  int64_t height = 5, width = 5;
  const char* isa = nullptr;

  ConvHandle create() {
    semisparse_conv* conv = nullptr;
    CHECK_OK(create(&conv));
    return ConvHandle(conv);
  }
  semisparse_status create(semisparse_conv** conv) {
    return semisparse_conv_create(&desc, weights.data(), bias.data(), source.data(),
                                  weight.empty() ? nullptr : weight.data(), height, width, isa,
                                  conv);
  }
};

void refuse(const char* what, const std::function<void(Arguments&)>& spoil,
            semisparse_status want = SEMISPARSE_INVALID_ARGUMENT) {
  context = what;
  Arguments arguments;
  spoil(arguments);
  char untouched;
  auto* conv = reinterpret_cast<semisparse_conv*>(&untouched);
  check_refused(arguments.create(&conv), want);
  CHECK(conv == reinterpret_cast<semisparse_conv*>(&untouched));
}

void check_create() {
  Arguments().create();
  for (const int64_t value : {int64_t{0}, kHuge[0], kHuge[1], kHuge[2], kHuge[3]}) {
    refuse("in_channels", [=](Arguments& a) { a.desc.in_channels = value; });
    refuse("out_channels", [=](Arguments& a) { a.desc.out_channels = value; });
    refuse("group", [=](Arguments& a) { a.desc.group = value; });
    refuse("kernel", [=](Arguments& a) { a.desc.kernel[1] = value; });
    refuse("strides", [=](Arguments& a) { a.desc.strides[0] = value; });
    refuse("dilations", [=](Arguments& a) { a.desc.dilations[1] = value; });
    refuse("height", [=](Arguments& a) { a.height = value; });
    refuse("width", [=](Arguments& a) { a.width = value; });
  }
  for (const int64_t value : kHuge) {
    for (int i = 0; i < 4; ++i) {
      refuse("pads", [=](Arguments& a) { a.desc.pads[i] = value; });
    }
  }
  refuse("sizes that overflow together", [](Arguments& a) {
    a.desc.in_channels = a.desc.out_channels = 1 << 16;
    a.desc.kernel[0] = a.desc.kernel[1] = 1 << 16;
  });
  refuse("group that divides neither", [](Arguments& a) { a.desc.group = 3; });
  refuse("group that divides one", [](Arguments& a) { a.desc.group = 4; });
  for (const int value : {-1, 2, 1 << 30}) {
    refuse("input_layout",
           [=](Arguments& a) { std::memcpy(&a.desc.input_layout, &value, sizeof(value)); });
  }
  for (const int value : {-1, 9, 1 << 30}) {
    refuse("activation", [=](Arguments& a) {
      // The C caller's enum can hold anything.
      std::memcpy(&a.desc.activation, &value, sizeof(value));
    });
  }
  refuse("NaN slope", [](Arguments& a) { a.desc.activation_a = NAN; });
  refuse("empty clip range", [](Arguments& a) {
    a.desc.activation = SEMISPARSE_CLIP;
    a.desc.activation_a = 1;
    a.desc.activation_b = -1;
  });
  refuse("NaN weight", [](Arguments& a) { a.weights.back() = NAN; });
  refuse("infinite bias", [](Arguments& a) { a.bias.back() = -INFINITY; });
  for (const int32_t value : {-2, 25, INT32_MIN, INT32_MAX}) {
    refuse("source out of the plane", [=](Arguments& a) { a.source[24] = value; });
  }
  refuse("source that is itself a copy", [](Arguments& a) { a.source[24] = 23; });
  refuse("source that is blank", [](Arguments& a) {
    a.source[23] = -1;
    a.source[24] = 23;
  });
  refuse("isa", [](Arguments& a) { a.isa = "none"; }, SEMISPARSE_UNSUPPORTED);

  // Positions 0 and 1 are computed, all others are means of them.
  const auto use_means = [](Arguments& a) {
    a.source.assign(50, 0);
    std::fill_n(a.source.begin() + 26, 24, 1);
    a.source[1] = 1;
    a.weight.assign(25, 0.25f);
    a.weight[0] = a.weight[1] = 0;
  };
  {
    context = "means";
    Arguments good;
    use_means(good);
    good.create();
  }
  const auto refuse_means = [&](const char* what, size_t at, int32_t source, float weight) {
    refuse(what, [=](Arguments& a) {
      use_means(a);
      a.source[at] = source;
      a.weight[at % 25] = weight;
    });
  };
  for (const int32_t value : {-2, -1, 25, INT32_MIN, INT32_MAX, 3}) {
    refuse_means("first source", 24, value, 0.25f);
    refuse_means("second source", 49, value, 0.25f);
  }
  for (const float value : {-0.1f, 1.1f, NAN, INFINITY}) {
    refuse_means("weight of a second source", 24, 0, value);
    refuse_means("weight of a computed position", 0, 0, value);
  }
  refuse_means("computed position with another second source", 25, 1, 0);
  {
    context = "means without sources";
    Arguments bad;
    use_means(bad);
    semisparse_conv* none = nullptr;
    check_refused(semisparse_conv_create(&bad.desc, bad.weights.data(), nullptr, nullptr,
                                         bad.weight.data(), 5, 5, nullptr, &none));
  }

  context = "null arguments";
  Arguments a;
  semisparse_conv* conv = nullptr;
  check_refused(semisparse_conv_create(nullptr, a.weights.data(), nullptr, nullptr, nullptr, 0, 0,
                                       nullptr, &conv));
  check_refused(
      semisparse_conv_create(&a.desc, nullptr, nullptr, nullptr, nullptr, 0, 0, nullptr, &conv));
  check_refused(semisparse_conv_create(&a.desc, a.weights.data(), nullptr, nullptr, nullptr, 0, 0,
                                       nullptr, nullptr));
  CHECK(semisparse_conv_kernel(nullptr) == nullptr);
  semisparse_conv_destroy(nullptr);
}

void check_run() {
  Arguments a;
  const ConvHandle conv = a.create();
  std::vector<float> x(50, 1.0f);
  std::vector<float> y(100, -77.0f);
  const auto run = [&](const semisparse_conv* c, const float* in, int64_t n, int64_t h, int64_t w,
                       float* out) {
    return semisparse_conv_run(c, in, n, h, w, nullptr, nullptr, out, nullptr, nullptr);
  };
  context = "run";
  check_refused(run(nullptr, x.data(), 1, 5, 5, y.data()));
  check_refused(run(conv.get(), nullptr, 1, 5, 5, y.data()));
  check_refused(run(conv.get(), x.data(), 1, 5, 5, nullptr));
  check_refused(run(conv.get(), x.data(), 1, 5, 6, y.data()));  // not the mask's plane
  check_refused(run(conv.get(), x.data(), 1, 6, 5, y.data()));
  check_refused(run(conv.get(), x.data(), 1, 0, 5, y.data()));
  for (const int64_t value : kHuge) {
    check_refused(run(conv.get(), x.data(), value, 5, 5, y.data()));
    check_refused(run(conv.get(), x.data(), 1, value, 5, y.data()));
    check_refused(run(conv.get(), x.data(), 1, 5, value, y.data()));
  }
  CHECK_OK(run(conv.get(), x.data(), 0, 5, 5, y.data()));  // no images, nothing to do
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
  CHECK_OK(run(conv.get(), x.data(), 1, 5, 5, y.data()));
  for (const float v : y) CHECK(v != -77.0f);

  context = "gate of a 3x3 convolution";
  for (float& v : y) v = -77.0f;
  check_refused(semisparse_conv_run(conv.get(), x.data(), 1, 5, 5, x.data(), nullptr, y.data(),
                                    nullptr, nullptr));
  for (const float v : y) CHECK_EQUAL(v, -77.0f);

  context = "output size";
  int64_t out[2] = {-7, -7};
  check_refused(semisparse_conv_output_size(nullptr, 5, 5, &out[0], &out[1]));
  check_refused(semisparse_conv_output_size(conv.get(), 5, 5, nullptr, &out[1]));
  check_refused(semisparse_conv_output_size(conv.get(), 5, 5, &out[0], nullptr));
  check_refused(semisparse_conv_output_size(conv.get(), 4, 5, &out[0], &out[1]));
  CHECK_EQUAL(out[0], int64_t{-7});
}

void check_scratch() {
  context = "scratch that no machine has";
  // Few channels and a wide kernel take a padded copy, here of 2^50 positions for one output.
  Arguments a;
  a.source.clear();
  for (int64_t& pad : a.desc.pads) pad = int64_t{1} << 24;
  for (int64_t& stride : a.desc.strides) stride = int64_t{1} << 24;
  semisparse_conv* conv = nullptr;
  CHECK_OK(semisparse_conv_create(&a.desc, a.weights.data(), nullptr, nullptr, nullptr, 0, 0,
                                  nullptr, &conv));
  const ConvHandle handle(conv);
  int64_t out[2];
  CHECK_OK(semisparse_conv_output_size(conv, 5, 5, &out[0], &out[1]));
  std::vector<float> x(50, 1.0f);
  std::vector<float> y(static_cast<size_t>(out[0] * out[1] * 4), -77.0f);
  check_refused(
      semisparse_conv_run(conv, x.data(), 1, 5, 5, nullptr, nullptr, y.data(), nullptr, nullptr),
      SEMISPARSE_OUT_OF_MEMORY);
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
}

// An inverted residual from 2 over 6 to 4 channels on a 5x5 plane, with one thing wrong.
struct ChainArguments {
  semisparse_conv_desc descs[3] = {
      {2, 6, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, SEMISPARSE_RELU, 0, 0, SEMISPARSE_NHWC},
      {6, 6, 6, {3, 3}, {1, 1}, {1, 1, 1, 1}, {1, 1}, SEMISPARSE_RELU, 0, 0, SEMISPARSE_NHWC},
      {6, 4, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, SEMISPARSE_IDENTITY, 0, 0, SEMISPARSE_NHWC}};
  std::vector<float> weights = std::vector<float>(6 * 9, 0.5f);  // enough for each
  std::vector<int32_t> source = std::vector<int32_t>(25, 0);
  semisparse_chain_stage stages[3];
  semisparse_chain_form form = SEMISPARSE_EXPAND_DEPTHWISE_PROJECT;
  const char* isa = nullptr;

  ChainArguments() {
    for (int i = 0; i < 3; ++i) {
      stages[i] = {&descs[i], weights.data(), nullptr, source.data(), nullptr, 5, 5};
    }
  }
  ChainArguments(const ChainArguments&) = delete;
};

void refuse_chain(const char* what, const std::function<void(ChainArguments&)>& spoil,
                  semisparse_status want = SEMISPARSE_INVALID_ARGUMENT) {
  context = std::string("chain: ") + what;
  ChainArguments a;
  spoil(a);
  char untouched;
  auto* chain = reinterpret_cast<semisparse_chain*>(&untouched);
  check_refused(semisparse_chain_create(a.form, a.stages, a.isa, &chain), want);
  CHECK(chain == reinterpret_cast<semisparse_chain*>(&untouched));
}

void check_chain() {
  // By value, so that more than the enumeration's bits hold would be the test's own mistake.
  refuse_chain("form", [](ChainArguments& a) { a.form = static_cast<semisparse_chain_form>(3); });
  refuse_chain("stages of another form",
               [](ChainArguments& a) { a.form = SEMISPARSE_DEPTHWISE_PROJECT; });
  for (int i = 0; i < 3; ++i) {
    refuse_chain("no desc", [=](ChainArguments& a) { a.stages[i].desc = nullptr; });
    refuse_chain("NCHW", [=](ChainArguments& a) { a.descs[i].input_layout = SEMISPARSE_NCHW; });
    refuse_chain("no weights", [=](ChainArguments& a) { a.stages[i].weights = nullptr; });
    refuse_chain("NaN weight", [=](ChainArguments& a) { a.weights[0] = NAN; });
    refuse_chain("mask of another plane", [=](ChainArguments& a) { a.stages[i].height = 4; });
    refuse_chain("source that is none", [=](ChainArguments& a) { a.source[3] = 25; });
    for (const int64_t value : {int64_t{0}, kHuge[0], kHuge[1], kHuge[2], kHuge[3]}) {
      refuse_chain("in_channels", [=](ChainArguments& a) { a.descs[i].in_channels = value; });
      refuse_chain("out_channels", [=](ChainArguments& a) { a.descs[i].out_channels = value; });
      refuse_chain("group", [=](ChainArguments& a) { a.descs[i].group = value; });
      refuse_chain("strides", [=](ChainArguments& a) { a.descs[i].strides[0] = value; });
    }
  }
  for (const int i : {0, 2}) {
    refuse_chain("wide pointwise kernel", [=](ChainArguments& a) { a.descs[i].kernel[1] = 3; });
    refuse_chain("pointwise stride", [=](ChainArguments& a) { a.descs[i].strides[1] = 2; });
    refuse_chain("pointwise pads", [=](ChainArguments& a) { a.descs[i].pads[3] = 1; });
    refuse_chain("pointwise group", [=](ChainArguments& a) { a.descs[i].group = 2; });
  }
  refuse_chain("isa", [](ChainArguments& a) { a.isa = "none"; }, SEMISPARSE_UNSUPPORTED);

  context = "chain: null arguments";
  ChainArguments a;
  semisparse_chain* chain = nullptr;
  check_refused(semisparse_chain_create(a.form, nullptr, nullptr, &chain));
  check_refused(semisparse_chain_create(a.form, a.stages, nullptr, nullptr));
  CHECK(semisparse_chain_kernel(nullptr) == nullptr);
  semisparse_chain_destroy(nullptr);

  context = "chain: run";
  CHECK_OK(semisparse_chain_create(a.form, a.stages, nullptr, &chain));
  const std::unique_ptr<semisparse_chain, void (*)(semisparse_chain*)> owner(
      chain, semisparse_chain_destroy);
  std::vector<float> x(50, 1.0f);
  std::vector<float> y(100, -77.0f);
  const auto run = [&](const semisparse_chain* c, const float* in, int64_t n, int64_t h, int64_t w,
                       float* out) {
    return semisparse_chain_run(c, in, n, h, w, nullptr, out, nullptr, nullptr);
  };
  int64_t out[2] = {-7, -7};
  check_refused(run(nullptr, x.data(), 1, 5, 5, y.data()));
  check_refused(run(chain, nullptr, 1, 5, 5, y.data()));
  check_refused(run(chain, x.data(), 1, 5, 5, nullptr));
  check_refused(run(chain, x.data(), 1, 5, 6, y.data()));
  check_refused(semisparse_chain_output_size(nullptr, 5, 5, &out[0], &out[1]));
  check_refused(semisparse_chain_output_size(chain, 5, 5, nullptr, &out[1]));
  check_refused(semisparse_chain_output_size(chain, 4, 5, &out[0], &out[1]));
  for (const int64_t value : kHuge) {
    check_refused(run(chain, x.data(), value, 5, 5, y.data()));
    check_refused(run(chain, x.data(), 1, value, 5, y.data()));
    check_refused(run(chain, x.data(), 1, 5, value, y.data()));
  }
  CHECK_OK(run(chain, x.data(), 0, 5, 5, y.data()));
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
  CHECK_OK(run(chain, x.data(), 1, 5, 5, y.data()));
  for (const float v : y) CHECK(v != -77.0f);
}

void check_squeeze_excite() {
  const semisparse_conv_desc good[] = {
      {4, 2, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, SEMISPARSE_RELU, 0, 0, SEMISPARSE_NHWC},
      {2, 4, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}, {1, 1}, SEMISPARSE_SIGMOID, 0, 0, SEMISPARSE_NHWC}};
  const std::vector<float> weights(8 * 9, 0.5f);  // enough for what is spoiled, too
  const std::vector<int32_t> source(1, 0);
  const auto refuse_one = [&](const char* what, int spoiled, const auto& spoil) {
    context = std::string("squeeze and excitation: ") + what;
    semisparse_conv_desc descs[] = {good[0], good[1]};
    semisparse_chain_stage stages[2];
    for (int i = 0; i < 2; ++i) {
      stages[i] = {&descs[i], weights.data(), nullptr, nullptr, nullptr, 0, 0};
    }
    spoil(descs[spoiled], stages[spoiled]);
    semisparse_squeeze_excite* handle = nullptr;
    check_refused(semisparse_squeeze_excite_create(stages, 1, nullptr, &handle));
    CHECK(handle == nullptr);
  };
  using Desc = semisparse_conv_desc;
  using Stage = semisparse_chain_stage;
  for (const int i : {0, 1}) {
    refuse_one("no desc", i, [](Desc&, Stage& s) { s.desc = nullptr; });
    refuse_one("no weights", i, [](Desc&, Stage& s) { s.weights = nullptr; });
    refuse_one("NCHW", i, [](Desc& d, Stage&) { d.input_layout = SEMISPARSE_NCHW; });
    refuse_one("kernel", i, [](Desc& d, Stage&) { d.kernel[1] = 3; });
    refuse_one("strides", i, [](Desc& d, Stage&) { d.strides[0] = 2; });
    refuse_one("pads", i, [](Desc& d, Stage&) { d.pads[3] = 1; });
    refuse_one("group", i, [](Desc& d, Stage&) { d.group = 2; });
    refuse_one("no way back", i, [](Desc& d, Stage&) { d.in_channels = 1; });
    refuse_one("mask", i, [&](Desc&, Stage& s) {
      s.source = source.data();
      s.height = s.width = 1;
    });
    for (const int64_t value : kHuge) {
      refuse_one("in_channels", i, [=](Desc& d, Stage&) { d.in_channels = value; });
      refuse_one("out_channels", i, [=](Desc& d, Stage&) { d.out_channels = value; });
    }
  }

  context = "squeeze and excitation: run";
  const Stage stages[] = {{&good[0], weights.data(), nullptr, nullptr, nullptr, 0, 0},
                          {&good[1], weights.data(), nullptr, nullptr, nullptr, 0, 0}};
  semisparse_squeeze_excite* handle = nullptr;
  check_refused(semisparse_squeeze_excite_create(nullptr, 1, nullptr, &handle));
  check_refused(semisparse_squeeze_excite_create(stages, 1, nullptr, nullptr));
  check_refused(semisparse_squeeze_excite_create(stages, 1, "none", &handle),
                SEMISPARSE_UNSUPPORTED);
  semisparse_squeeze_excite_destroy(nullptr);
  CHECK_OK(semisparse_squeeze_excite_create(stages, 1, nullptr, &handle));
  const std::unique_ptr<semisparse_squeeze_excite, void (*)(semisparse_squeeze_excite*)> owner(
      handle, semisparse_squeeze_excite_destroy);
  const std::vector<float> x(24, 1.0f);
  std::vector<float> y(24, -77.0f);
  const auto run = [&](const semisparse_squeeze_excite* h, const float* in, int64_t batch,
                       int64_t height, int64_t width, float* out) {
    return semisparse_squeeze_excite_run(h, in, batch, height, width, out, nullptr, nullptr);
  };
  check_refused(run(nullptr, x.data(), 1, 2, 3, y.data()));
  check_refused(run(handle, nullptr, 1, 2, 3, y.data()));
  check_refused(run(handle, x.data(), 1, 2, 3, nullptr));
  check_refused(run(handle, x.data(), 1, 0, 3, y.data()));
  for (const int64_t value : kHuge) {
    check_refused(run(handle, x.data(), value, 2, 3, y.data()));
    check_refused(run(handle, x.data(), 1, value, 3, y.data()));
    check_refused(run(handle, x.data(), 1, 2, value, y.data()));
  }
  CHECK_OK(run(handle, x.data(), 0, 2, 3, y.data()));
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
  CHECK_OK(run(handle, x.data(), 1, 2, 3, y.data()));
  for (const float v : y) CHECK(v != -77.0f);
}

void check_layer_norm() {
  context = "layer normalisation";
  const std::vector<float> x(24, 1.0f);
  const std::vector<float> ones(4, 1.0f);
  std::vector<float> y(24, -77.0f);
  const auto run = [](const float* in, int64_t batch, int64_t positions, int64_t channels,
                      const float* scale, const float* shift, float epsilon, float* out,
                      const char* isa = nullptr) {
    return semisparse_layer_norm_run(in, batch, positions, channels, scale, shift, epsilon, nullptr,
                                     out, isa, nullptr, nullptr);
  };
  const float* one = ones.data();
  check_refused(run(nullptr, 1, 6, 4, one, one, 0, y.data()));
  check_refused(run(x.data(), 1, 6, 4, nullptr, one, 0, y.data()));
  check_refused(run(x.data(), 1, 6, 4, one, nullptr, 0, y.data()));
  check_refused(run(x.data(), 1, 6, 4, one, one, 0, nullptr));
  check_refused(run(x.data(), 1, 6, 4, one, one, -1, y.data()));
  check_refused(run(x.data(), 1, 6, 4, one, one, NAN, y.data()));
  check_refused(run(x.data(), 1, 6, 4, one, one, 0, y.data(), "none"), SEMISPARSE_UNSUPPORTED);
  for (const int64_t value : kHuge) {
    check_refused(run(x.data(), value, 6, 4, one, one, 0, y.data()));
    check_refused(run(x.data(), 1, value, 4, one, one, 0, y.data()));
    check_refused(run(x.data(), 1, 6, value, one, one, 0, y.data()));
  }
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
}

void check_source_map() {
  context = "source map";
  const std::vector<uint8_t> none(6, 0);
  std::vector<int32_t> source(6, -7);
  const auto map = [&](const uint8_t* mask, int64_t h, int64_t w, int number, int32_t* to) {
    semisparse_fill fill;
    std::memcpy(&fill, &number, sizeof(fill));
    return semisparse_source_map(mask, h, w, fill, to);
  };
  check_refused(map(nullptr, 2, 3, 0, source.data()));
  check_refused(map(none.data(), 2, 3, 0, nullptr));
  check_refused(map(none.data(), 2, 3, 1, source.data()));  // nothing to copy from
  check_refused(map(none.data(), 2, 3, 2, source.data()));
  for (const int64_t value : {int64_t{0}, kHuge[0], kHuge[1], kHuge[2], kHuge[3]}) {
    check_refused(map(none.data(), value, 3, 0, source.data()));
    check_refused(map(none.data(), 2, value, 0, source.data()));
  }
  for (const int32_t s : source) CHECK_EQUAL(s, -7);
}

void check_mean_sources() {
  context = "mean sources";
  const std::vector<uint8_t> none(6, 0);
  std::vector<int32_t> sources(12, -7);
  std::vector<float> weight(6, -7);
  const auto map = semisparse_mean_sources;
  check_refused(map(nullptr, 2, 3, sources.data(), weight.data()));
  check_refused(map(none.data(), 2, 3, nullptr, weight.data()));
  check_refused(map(none.data(), 2, 3, sources.data(), nullptr));
  check_refused(map(none.data(), 2, 3, sources.data(), weight.data()));
  for (const int64_t value : {int64_t{0}, kHuge[0], kHuge[1], kHuge[2], kHuge[3]}) {
    check_refused(map(none.data(), value, 3, sources.data(), weight.data()));
    check_refused(map(none.data(), 2, value, sources.data(), weight.data()));
  }
  for (const int32_t s : sources) CHECK_EQUAL(s, -7);
  for (const float w : weight) CHECK_EQUAL(w, -7.0f);

  for (uint64_t seed = 0; seed < rounds(200); ++seed) {
    context = "mean sources, seed " + std::to_string(seed);
    Random random(seed);
    const auto height = random.between(1, 12), width = random.between(1, 12);
    const auto plane = static_cast<size_t>(height * width);
    const double sparsity = static_cast<double>(random.between(0, 99)) / 100;
    std::vector<uint8_t> mask(plane);
    for (uint8_t& m : mask) m = random.chance(sparsity) ? 0 : 1;
    mask[random.size(0, plane - 1)] = 1;
    sources.resize(2 * plane);
    weight.resize(plane);
    CHECK_OK(map(mask.data(), height, width, sources.data(), weight.data()));
    for (size_t p = 0; p < plane; ++p) {
      std::vector<std::pair<double, int32_t>> all;  // distance and position
      for (size_t q = 0; q < plane; ++q) {
        const auto along = [&](size_t i) { return static_cast<int64_t>(i) % width; };
        const auto down = [&](size_t i) { return static_cast<int64_t>(i) / width; };
        if (mask[q] != 0) {
          all.emplace_back(std::hypot(down(p) - down(q), along(p) - along(q)),
                           static_cast<int32_t>(q));
        }
      }
      std::sort(all.begin(), all.end());
      const auto first = all[0];
      const auto second = mask[p] != 0 || all.size() == 1 ? first : all[1];
      CHECK_EQUAL(sources[p], first.second);
      CHECK_EQUAL(sources[plane + p], second.second);
      const double sum = first.first + second.first;
      CHECK(std::abs(weight[p] - (first == second ? 0 : first.first / sum)) < 1e-6);
    }
  }
}

void check_pool() {
  context = "pool";
  const semisparse_pool_desc good{SEMISPARSE_MAX_POOL, {2, 2}, {2, 2}, {0, 0, 0, 0}, {1, 1}, 0, 0};
  std::vector<float> x(16, 1.0f);
  std::vector<float> y(4, -77.0f);
  const auto run = [&](const semisparse_pool_desc* desc, const float* in, int64_t n, int64_t h,
                       int64_t channels, float* out, const char* isa = nullptr) {
    return semisparse_pool_run(desc, in, n, h, 4, channels, out, isa, nullptr, nullptr);
  };
  check_refused(run(nullptr, x.data(), 1, 4, 1, y.data()));
  check_refused(run(&good, nullptr, 1, 4, 1, y.data()));
  check_refused(run(&good, x.data(), 1, 4, 1, nullptr));
  check_refused(run(&good, x.data(), -1, 4, 1, y.data()));
  check_refused(run(&good, x.data(), 1, 4, -1, y.data()));
  check_refused(run(&good, x.data(), 1, 1, 1, y.data()));
  check_refused(run(&good, x.data(), 1, 4, 1, y.data(), "none"), SEMISPARSE_UNSUPPORTED);
  const auto refuse_desc = [&](const std::function<void(semisparse_pool_desc&)>& spoil) {
    semisparse_pool_desc desc = good;
    spoil(desc);
    check_refused(run(&desc, x.data(), 1, 4, 1, y.data()));
  };
  for (const int64_t value : {int64_t{0}, kHuge[0], kHuge[1], kHuge[2], kHuge[3]}) {
    refuse_desc([=](semisparse_pool_desc& d) { d.kernel[0] = value; });
    refuse_desc([=](semisparse_pool_desc& d) { d.strides[1] = value; });
    refuse_desc([=](semisparse_pool_desc& d) { d.dilations[0] = value; });
    check_refused(run(&good, x.data(), 1, value, 1, y.data()));
  }
  for (const int64_t value : kHuge) {
    refuse_desc([=](semisparse_pool_desc& d) { d.pads[3] = value; });
  }
  refuse_desc([](semisparse_pool_desc& d) { d.pads[0] = 2; });  // a window of padding only
  refuse_desc([](semisparse_pool_desc& d) {
    const int kind = 3;
    std::memcpy(&d.kind, &kind, sizeof(kind));
  });
  for (const float v : y) CHECK_EQUAL(v, -77.0f);
}

void check_measure() {
  context = "measure";
  double rate = -7;
  for (const double seconds : {0.0, -1.0, 1e9, static_cast<double>(NAN)}) {
    check_refused(semisparse_measure_fma(nullptr, seconds, &rate));
    check_refused(semisparse_measure_copy(4096, seconds, &rate));
  }
  check_refused(semisparse_measure_fma(nullptr, 0.01, nullptr));
  check_refused(semisparse_measure_copy(4096, 0.01, nullptr));
  check_refused(semisparse_measure_copy(0, 0.01, &rate));
  check_refused(semisparse_measure_copy(SIZE_MAX, 0.01, &rate));
  check_refused(semisparse_measure_fma("none", 0.01, &rate), SEMISPARSE_UNSUPPORTED);
  CHECK_EQUAL(rate, -7.0);
  for (const std::string& isa : usable_isas()) {
    CHECK_OK(semisparse_measure_fma(isa.c_str(), 0.002, &rate));
    CHECK(rate > 1e6);
  }
  CHECK_OK(semisparse_measure_copy(4096, 0.002, &rate));
  CHECK(rate > 1e6);
}

}  // namespace

int main() {
  check_create();
  check_run();
  check_scratch();
  check_chain();
  check_squeeze_excite();
  check_layer_norm();
  check_source_map();
  check_mean_sources();
  check_pool();
  check_measure();
}
