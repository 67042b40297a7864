// Convolutions drawn at random, and what they should give.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "tests/activation.h"
#include "tests/api.h"
#include "tests/guarded.h"

namespace semisparse::test {

// All of one convolution but its output.
struct Problem {
  Problem(Random& random, int64_t largest_plane);

  size_t input_floats() const;
  size_t weight_floats() const;
  size_t output_floats() const;
  std::string text() const;

  ConvHandle create(const char* isa);
  // Into `y`, by the textbook's loop; activations in double precision.
  void reference(Guarded<float>& y);

  semisparse_conv_desc desc{};
  int64_t batch, height, width, out_height, out_width;
  std::optional<semisparse_fill> fill;  // none: dense
  std::optional<Guarded<float>> x, weights, bias, gate, residual;
  std::vector<int32_t> source;
  std::vector<float> weight;  // of second sources, which then follow in `source`

 private:
  void draw_mask(Random& random);
  void draw_means(Random& random);
  void draw_gate(Random& random);
};

inline Problem::Problem(Random& random, int64_t largest_plane) {
  // One in four is depthwise, one in four has groups, and channel counts cross the panel widths.
  const size_t kind = random.size(0, 3);
  desc.group = kind == 0 ? random.between(1, 70) : kind == 1 ? random.between(2, 4) : 1;
  const int64_t most = kind == 0 ? 1 : random.chance(0.2) ? 150 : 20;
  desc.in_channels = desc.group * random.between(1, most);
  desc.out_channels = desc.group * random.between(1, most);
  for (int i = 0; i < 2; ++i) {
    desc.kernel[i] = random.chance(0.5) ? 3 : random.between(1, 5);
    desc.strides[i] = random.chance(0.6) ? 1 : random.between(1, 3);
    desc.dilations[i] = random.chance(0.7) ? 1 : random.between(1, 3);
    desc.pads[i] = random.between(0, 3);
    desc.pads[i + 2] = random.between(0, 3);
  }
  desc.activation = static_cast<semisparse_activation>(random.between(0, 8));
  if (desc.activation == SEMISPARSE_CLIP) {
    desc.activation_b = 6;
  } else if (desc.activation == SEMISPARSE_LEAKY_RELU) {
    desc.activation_a = 0.125f;
  }

  // Weights of one panel that do not fit in the cache take a path of their own.
  const bool plain = random.chance(0.15);  // pointwise, which may have a gate
  if (plain) {
    desc.group = desc.kernel[0] = desc.kernel[1] = 1;
    std::fill_n(desc.pads, 4, 0);
    if (random.chance(0.2)) desc.in_channels = random.between(300, 600);
    if (random.chance(0.2)) desc.out_channels = random.between(100, 300);
    if (random.chance(0.05)) {
      desc.in_channels = random.between(2100, 2300);
      desc.out_channels = random.between(66, 140);
      largest_plane = std::min<int64_t>(largest_plane, 5);
    } else if (random.chance(0.08)) {
      // Enough rows for threads to share them, with weights that do not stay beside them.
      desc.in_channels = random.between(500, 700);
      desc.out_channels = random.between(140, 260);
      largest_plane *= 2;
    }
  }
  const bool deep = random.chance(0.01);
  if (deep) {
    desc.group = 1;
    desc.in_channels = random.between(480, 700);
    desc.out_channels = random.between(60, 140);
    desc.kernel[0] = desc.kernel[1] = 3;
    largest_plane = std::min<int64_t>(largest_plane, 6);
  }

  batch = random.chance(0.7) ? 1 : random.between(2, 3);
  const auto side = [&](int i) {
    const int64_t reach = (desc.kernel[i] - 1) * desc.dilations[i] + 1;
    const int64_t least = std::max<int64_t>(1, reach - desc.pads[i] - desc.pads[i + 2]);
    return random.between(least, std::max(least, largest_plane));
  };
  height = side(0);
  width = side(1);
  const auto out = [&](int i, int64_t size) {
    const int64_t reach = (desc.kernel[i] - 1) * desc.dilations[i] + 1;
    return (size + desc.pads[i] + desc.pads[i + 2] - reach) / desc.strides[i] + 1;
  };
  out_height = out(0, height);
  out_width = out(1, width);

  const bool finite = random.chance(0.7);
  test::fill(x.emplace(input_floats(), random), random, finite);
  test::fill(weights.emplace(weight_floats(), random), random, true);
  if (random.chance(0.8)) {
    test::fill(bias.emplace(static_cast<size_t>(desc.out_channels), random), random, true);
  }
  if (random.chance(0.4)) test::fill(residual.emplace(output_floats(), random), random, finite);
  if (random.chance(0.7)) draw_mask(random);
  if (random.chance(0.2)) desc.input_layout = SEMISPARSE_NCHW;
  if (fill == SEMISPARSE_FILL_NEAREST && random.chance(0.5)) draw_means(random);
  const auto is_one = [](int64_t v) { return v == 1; };
  const bool pointwise = desc.group == 1 && desc.in_channels > 1 &&
                         desc.input_layout == SEMISPARSE_NHWC &&
                         std::all_of(desc.kernel, desc.kernel + 2, is_one) &&
                         std::all_of(desc.pads, desc.pads + 4, [](int64_t v) { return v == 0; });
  if (pointwise && random.chance(0.5)) draw_gate(random);
}

// Of quarters, so that sums stay exact.
inline void Problem::draw_gate(Random& random) {
  gate.emplace(static_cast<size_t>(batch * desc.in_channels), random);
  for (size_t i = 0; i < gate->size(); ++i)
    (*gate)[i] = static_cast<float>(random.between(0, 4)) / 4;
}

// Any computed positions as second sources, and weights that leave sums exact.
inline void Problem::draw_means(Random& random) {
  const size_t plane = source.size();
  std::vector<int32_t> computed;
  for (size_t p = 0; p < plane; ++p) {
    if (source[p] == static_cast<int32_t>(p)) computed.push_back(source[p]);
  }
  for (size_t p = 0; p < plane; ++p) {
    const bool masked = source[p] != static_cast<int32_t>(p);
    source.push_back(masked ? computed[random.size(0, computed.size() - 1)] : source[p]);
    weight.push_back(masked ? static_cast<float>(random.between(0, 8)) / 8 : 0);
  }
}

inline void Problem::draw_mask(Random& random) {
  fill = random.chance(0.5) ? SEMISPARSE_FILL_BIAS : SEMISPARSE_FILL_NEAREST;
  const auto plane = static_cast<size_t>(out_height * out_width);
  const double sparsity = random.chance(0.1) ? 1 : static_cast<double>(random.between(0, 95)) / 100;
  std::vector<uint8_t> mask(plane);
  for (uint8_t& m : mask) m = random.chance(sparsity) ? 0 : 1;
  if (*fill == SEMISPARSE_FILL_NEAREST) mask[random.size(0, plane - 1)] = 1;
  source.assign(plane, -1);
  for (size_t p = 0; p < plane; ++p) {
    int64_t best = INT64_MAX;
    for (size_t q = 0; q < plane; ++q) {
      const int64_t dy = static_cast<int64_t>(p) / out_width - static_cast<int64_t>(q) / out_width;
      const int64_t dx = static_cast<int64_t>(p) % out_width - static_cast<int64_t>(q) % out_width;
      const int64_t distance = dy * dy + dx * dx;
      // A position is the nearest to itself, and the first of equals stays.
      if (mask[q] != 0 && distance < best && (p == q || *fill == SEMISPARSE_FILL_NEAREST)) {
        best = distance;
        source[p] = static_cast<int32_t>(q);
      }
    }
  }
  std::vector<int32_t> got(plane);
  CHECK_OK(semisparse_source_map(mask.data(), out_height, out_width, *fill, got.data()));
  CHECK(got == source);
}

inline size_t Problem::input_floats() const {
  return static_cast<size_t>(batch * height * width * desc.in_channels);
}
inline size_t Problem::weight_floats() const {
  return static_cast<size_t>(desc.out_channels * (desc.in_channels / desc.group) * desc.kernel[0] *
                             desc.kernel[1]);
}
inline size_t Problem::output_floats() const {
  return static_cast<size_t>(batch * out_height * out_width * desc.out_channels);
}

inline std::string Problem::text() const {
  const auto pair = [](const int64_t* v) {
    return std::to_string(v[0]) + "x" + std::to_string(v[1]);
  };
  return std::to_string(desc.in_channels) + "->" + std::to_string(desc.out_channels) + " group " +
         std::to_string(desc.group) + " kernel " + pair(desc.kernel) + " strides " +
         pair(desc.strides) + " pads " + pair(desc.pads) + ", " + pair(desc.pads + 2) +
         " dilations " + pair(desc.dilations) + " activation " +
         std::to_string(static_cast<int>(desc.activation)) + " on " + std::to_string(batch) + "x" +
         std::to_string(height) + "x" + std::to_string(width) +
         (!fill                           ? " dense"
          : *fill == SEMISPARSE_FILL_BIAS ? " fill bias"
          : weight.empty()                ? " fill nearest"
                                          : " fill mean") +
         (gate ? " gated" : "") + (residual ? " residual" : "") +
         (desc.input_layout == SEMISPARSE_NCHW ? " NCHW" : "");
}

inline ConvHandle Problem::create(const char* isa) {
  semisparse_conv* conv = nullptr;
  CHECK_OK(semisparse_conv_create(
      &desc, weights->data(), bias ? bias->data() : nullptr, fill ? source.data() : nullptr,
      weight.empty() ? nullptr : weight.data(), out_height, out_width, isa, &conv));
  int64_t size[2];
  CHECK_OK(semisparse_conv_output_size(conv, height, width, &size[0], &size[1]));
  CHECK_EQUAL(size[0], out_height);
  CHECK_EQUAL(size[1], out_width);
  return ConvHandle(conv);
}

inline void Problem::reference(Guarded<float>& y) {
  const int64_t ins = desc.in_channels / desc.group;
  const int64_t outs = desc.out_channels / desc.group;
  const auto linear = [&](int64_t n, int64_t position, int64_t o) {
    double sum = 0;
    for (int64_t ky = 0; ky < desc.kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < desc.kernel[1]; ++kx) {
        const int64_t iy =
            position / out_width * desc.strides[0] - desc.pads[0] + ky * desc.dilations[0];
        const int64_t ix =
            position % out_width * desc.strides[1] - desc.pads[1] + kx * desc.dilations[1];
        if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
        for (int64_t c = 0; c < ins; ++c) {
          const int64_t channel = o / outs * ins + c;
          const int64_t at = desc.input_layout == SEMISPARSE_NCHW
                                 ? ((n * desc.in_channels + channel) * height + iy) * width + ix
                                 : ((n * height + iy) * width + ix) * desc.in_channels + channel;
          const int64_t w = ((o * ins + c) * desc.kernel[0] + ky) * desc.kernel[1] + kx;
          double value = (*x)[static_cast<size_t>(at)];
          if (gate) value *= (*gate)[static_cast<size_t>(n * desc.in_channels + channel)];
          sum += value * (*weights)[static_cast<size_t>(w)];
        }
      }
    }
    return sum;
  };
  size_t at = 0;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t p = 0; p < out_height * out_width; ++p) {
      const int64_t from = fill ? source[static_cast<size_t>(p)] : p;
      for (int64_t o = 0; o < desc.out_channels; ++o, ++at) {
        double v = from < 0 ? 0 : linear(n, from, o);
        const auto at_second = static_cast<size_t>(out_height * out_width + p);
        if (!weight.empty() && source[at_second] != from) {
          const double w = weight[static_cast<size_t>(p)];
          v = (1 - w) * v + w * linear(n, source[at_second], o);
        }
        if (bias) v += (*bias)[static_cast<size_t>(o)];
        if (residual) v += (*residual)[at];
        y[at] = static_cast<float>(activated(desc, v));
      }
    }
  }
}

// How far an output may be off. Nothing where sums are exact and the activation is a clamp or a
// product.
inline double tolerance(const Problem& problem, double want) {
  const semisparse_conv_desc& d = problem.desc;
  double allowed = d.activation >= SEMISPARSE_SILU ? 1e-6 * (1 + std::abs(want)) : 0;
  // Winograd's filters have 243rds, and it adds up larger numbers than the result: some float32
  // roundings of a sum of 9 C products of up to 64. A wrong term still is more than 1 / 64 off.
  bool winograd = d.group == 1;
  for (int i = 0; i < 2; ++i) {
    winograd = winograd && d.kernel[i] == 3 && d.strides[i] == 1 && d.dilations[i] == 1;
  }
  if (winograd) allowed += 4e-6 * 64 * std::sqrt(9 * static_cast<double>(d.in_channels));
  return allowed;
}

inline void check_output(const Problem& problem, Guarded<float>& got, Guarded<float>& want) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (same(got[i], want[i])) continue;
    if (std::abs(static_cast<double>(got[i]) - want[i]) <= tolerance(problem, want[i])) continue;
    fail(__FILE__, __LINE__,
         "element " + std::to_string(i) + " of " + std::to_string(got.size()) + " is " +
             std::to_string(got[i]) + ", not " + std::to_string(want[i]));
  }
}

}  // namespace semisparse::test
