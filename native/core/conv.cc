#include "core/conv.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "core/c_enum.h"
#include "core/conv_work.h"
#include "core/error.h"
#include "core/packing.h"

namespace semisparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// With fewer input channels than this the taps are too short for the kernel's inner loop, and the
// input is small enough to be copied into a padded plane where a filter row is one long tap.
constexpr int64_t kShortTap = 16;
// Filters of one input channel of which up to so many share it run as depthwise ones, over a copy
// of the input with each channel so many times in a row. FastViT's, 7x7 with stride 2 from 48
// channels at 56x56 to 96, take 160 instead of 1110 us (EPYC, Zen 4, AVX-512).
constexpr int64_t kMostRepeated = 4;

std::string plane_text(int64_t height, int64_t width) {
  return std::to_string(height) + " x " + std::to_string(width);
}

void check_range(const char* what, int64_t value, int64_t lowest) {
  // Past 2^24 no product of three sizes is safe in 64 bits, and no layer is that large.
  if (value < lowest || value > (int64_t{1} << 24)) {
    invalid(std::string("a convolution with ") + what + " " + std::to_string(value) +
            " is not possible; it must be between " + std::to_string(lowest) + " and 2^24");
  }
}

void check(const semisparse_conv_desc& d) {
  check_range("in_channels", d.in_channels, 1);
  check_range("out_channels", d.out_channels, 1);
  check_range("group", d.group, 1);
  for (int i = 0; i < 2; ++i) {
    check_range("kernel", d.kernel[i], 1);
    check_range("strides", d.strides[i], 1);
    check_range("dilations", d.dilations[i], 1);
  }
  for (const int64_t pad : d.pads) check_range("pads", pad, 0);
  // In double precision the product cannot wrap around.
  const double weights = static_cast<double>(d.in_channels / d.group) *
                         static_cast<double>(d.kernel[0]) * static_cast<double>(d.kernel[1]) *
                         static_cast<double>(d.out_channels);
  if (weights > static_cast<double>(int64_t{1} << 40)) {
    invalid("a convolution with " + std::to_string(weights) +
            " weights is not possible; there must be at most 2^40");
  }
  if (d.in_channels % d.group != 0 || d.out_channels % d.group != 0) {
    invalid("group " + std::to_string(d.group) + " does not divide " +
            std::to_string(d.in_channels) + " input and " + std::to_string(d.out_channels) +
            " output channels");
  }
  const int layout = number_of(d.input_layout);
  if (layout != SEMISPARSE_NHWC && layout != SEMISPARSE_NCHW) {
    invalid("input_layout " + std::to_string(layout) +
            " is unknown; it must be one of semisparse_layout");
  }
  const int activation = number_of(d.activation);
  if (activation < SEMISPARSE_IDENTITY || activation > SEMISPARSE_GELU) {
    invalid("activation " + std::to_string(activation) +
            " is unknown; it must be one of semisparse_activation");
  }
  if (std::isnan(d.activation_a) || std::isnan(d.activation_b) ||
      (d.activation == SEMISPARSE_CLIP && d.activation_a > d.activation_b)) {
    invalid("activation parameters " + std::to_string(d.activation_a) + " and " +
            std::to_string(d.activation_b) + " are not a range");
  }
}

void check_finite(const char* what, const float* values, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(values[i])) {
      invalid(std::string(what) + " " + std::to_string(i) + " is " + std::to_string(values[i]) +
              "; all must be finite");
    }
  }
}

}  // namespace

Conv::Conv(const semisparse_conv_desc& desc, const float* weights, const float* bias,
           const int32_t* source, const float* weight, int64_t height, int64_t width,
           const IsaInfo& isa, Weights after)
    : desc_(desc), epilogue_(&epilogue_kernel(isa.isa)) {
  check(desc);
  const auto outputs = static_cast<size_t>(desc.out_channels);
  check_finite("weight", weights,
               outputs * static_cast<size_t>(desc.in_channels / desc.group * desc.kernel[0] *
                                             desc.kernel[1]));
  if (bias != nullptr) check_finite("bias", bias, outputs);
  if (source == nullptr && weight != nullptr) {
    invalid("there are weights of second sources, but no sources; both or neither must be given");
  }
  if (source != nullptr && weight != nullptr) {
    means_.emplace(source, weight, height, width);
    positions_.emplace(means_->positions(height, width));
    if (means_->means.empty() && means_->copies.empty()) means_.reset();
  } else if (source != nullptr) {
    positions_.emplace(source, height, width);
  }
  means_finish_ = finish_of(desc, *epilogue_);
  finish_ = means_ ? kLinear : means_finish_;

  // Kernels load whole vectors of it, past the last channel of a panel.
  bias_ = make_lasting_buffer(outputs + kWidestPanel);
  std::fill_n(bias_.get(), outputs + kWidestPanel, 0.0f);
  if (bias != nullptr) std::copy_n(bias, outputs, bias_.get());
  const int64_t widest = std::max(desc.in_channels, desc.out_channels);
  zeros_ = make_buffer(static_cast<size_t>(widest));
  std::fill_n(zeros_.get(), widest, 0.0f);

  const bool depthwise = desc.group == desc.in_channels &&
                         desc.out_channels <= kMostRepeated * desc.group &&
                         (desc.group > 1 || desc.out_channels == 1);
  if (depthwise) {
    pack_depthwise(weights, isa.isa);
    kernel_name_ = dwconv_->name;
  } else {
    divide_channels(isa.isa);
    kernel_name_ = panels_.front().kernel->name;
    if (after == Weights::kStay) staying_ = weights;
    if (after == Weights::kGone) pack_panels(weights);
    prepare_winograd(isa.isa);
    if (winograds_.empty()) pack_panels(weights);
  }

  if (positions_ && !positions_->blank.empty()) {
    blank_row_ = make_buffer(outputs);
    const epilogue::Pair row{0, 0};
    spread(
        {&row, 1, bias_.get(), 0, nullptr, blank_row_.get(), 0, outputs, finish_.lo, finish_.hi});
  }
}

const Conv::Finish Conv::kLinear{-kInfinity, kInfinity, nullptr};

Conv::Finish Conv::finish_of(const semisparse_conv_desc& desc, const epilogue::Kernel& kernel) {
  switch (desc.activation) {
    case SEMISPARSE_IDENTITY:
      break;
    case SEMISPARSE_RELU:
      return {0, kInfinity, nullptr};
    case SEMISPARSE_CLIP:
      return {desc.activation_a, desc.activation_b, nullptr};
    case SEMISPARSE_LEAKY_RELU:
      return {-kInfinity, kInfinity, kernel.leaky_relu};
    case SEMISPARSE_SILU:
      return {-kInfinity, kInfinity, kernel.silu};
    case SEMISPARSE_HARD_SWISH:
      return {-kInfinity, kInfinity, kernel.hard_swish};
    case SEMISPARSE_SIGMOID:
      return {-kInfinity, kInfinity, kernel.sigmoid};
    case SEMISPARSE_HARD_SIGMOID:
      return {-kInfinity, kInfinity, kernel.hard_sigmoid};
    case SEMISPARSE_GELU:
      return {-kInfinity, kInfinity, kernel.gelu};
  }
  return kLinear;
}

void Conv::divide_channels(Isa isa) {
  const auto group = static_cast<size_t>(desc_.group);
  const size_t inputs = static_cast<size_t>(desc_.in_channels) / group;
  const size_t outputs = static_cast<size_t>(desc_.out_channels) / group;
  const auto taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  const size_t unit = igemm_narrowest(isa);

  // As few panels as the widest kernel allows, as equal as whole vectors allow: 160 channels are
  // 64 + 48 + 48 rather than 64 + 64 + 32, so that none is left with too few accumulators.
  const size_t units = ceil_div(outputs, unit);
  // Rows that lie a kibibyte or several apart, of the output and of a residual that comes from
  // memory, were 10 to 20% slower with two lines of each to a tile (last convolutions of ResNet50's
  // blocks at 56x56 and 28x28, EPYC, Zen 4, AVX2).
  const bool far_apart = outputs % 256 == 0;
  const size_t depth = far_apart ? std::numeric_limits<size_t>::max() : taps * inputs;
  const size_t count = ceil_div(units * unit, igemm_widest(isa, depth));
  mr_ = std::numeric_limits<size_t>::max();
  for (size_t g = 0; g < group; ++g) {
    size_t first = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t most = (units / count + (i < units % count ? 1 : 0)) * unit;
      Panel panel;
      panel.count = std::min(most, outputs - first);
      panel.kernel = &igemm_kernel(isa, panel.count);
      panel.first = g * outputs + first;
      panel.inputs = g * inputs;
      panel.weights = packed_floats_;
      panels_.push_back(panel);
      mr_ = std::min(mr_, panel.kernel->mr);
      first += panel.count;
      packed_floats_ += taps * inputs * panel.kernel->nr;
    }
  }
}

// As many as fit in half of the second-level cache together: where one panel alone fills that,
// finding its rows is nothing beside multiplying them.
size_t Conv::panel_groups() const {
  const size_t most = kWidestPanel / panels_.front().kernel->nr;
  const size_t bytes = packed_floats_ / panels_.size() * sizeof(float);
  return ceil_div(panels_.size(), std::clamp<size_t>(l2_cache_bytes() / 2 / bytes, 1, most));
}

Conv::PanelGroup Conv::panel_group(size_t index) const {
  const size_t groups = panel_groups();
  PanelGroup group{panels_.size() * index / groups, panels_.size() * (index + 1) / groups, 0, 0};
  group.channel = panels_[group.begin].first;
  const Panel& last = panels_[group.end - 1];
  group.channels = last.first + last.count - group.channel;
  return group;
}

void Conv::pack_panels(const float* weights) const {
  std::call_once(packed_, [&] {
    Buffer packed = make_lasting_buffer(packed_floats_);
    for (const Panel& panel : panels_) {
      pack_panel(weights, static_cast<size_t>(desc_.in_channels / desc_.group),
                 static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]), panel.first, panel.count,
                 panel.kernel->nr, packed.get() + panel.weights);
    }
    weights_ = std::move(packed);
  });
}

void Conv::pack_depthwise(const float* weights, Isa isa) {
  dwconv_ = &dwconv_kernel(isa);
  const auto channels = static_cast<size_t>(desc_.out_channels);
  const auto taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  const size_t blocks = ceil_div(channels, dwconv::kBlock);
  weights_ = make_lasting_buffer(blocks * taps * dwconv::kBlock);
  float* to = weights_.get();
  for (size_t b = 0; b < blocks; ++b) {
    for (size_t t = 0; t < taps; ++t) {
      for (size_t c = b * dwconv::kBlock; c < (b + 1) * dwconv::kBlock; ++c) {
        *to++ = c < channels ? weights[c * taps + t] : 0.0f;
      }
    }
  }
}

void Conv::prepare_winograd(Isa isa) {
  std::vector<Winograd::Panel> panels;
  for (const Panel& panel : panels_) {
    const float* packed = staying_ == nullptr ? weights_.get() + panel.weights : nullptr;
    panels.push_back({panel.kernel, panel.first, panel.count, packed});
  }
  const Positions* positions = positions_ ? &*positions_ : nullptr;
  for (const size_t outputs : Winograd::tile_sizes(desc_)) {
    winograds_.push_back(std::make_unique<Winograd>(desc_, *winograd_kernel(isa, outputs), panels,
                                                    staying_, positions));
  }
  if (positions_) {
    const Winograd* fastest = fastest_winograd(1, {positions_->height, positions_->width});
    const auto loses = [&](const auto& winograd) { return winograd.get() != fastest; };
    winograds_.erase(std::remove_if(winograds_.begin(), winograds_.end(), loses), winograds_.end());
  }
  for (auto i = winograds_.rbegin(); i != winograds_.rend(); ++i) {
    kernel_name_ = std::string((*i)->kernel_name()) + " + " + kernel_name_;
  }
}

// Null where the direct convolution is faster.
const Winograd* Conv::fastest_winograd(size_t images, Plane out) const {
  const auto plane = static_cast<size_t>(out.height * out.width);
  double least =
      Winograd::direct_cost(desc_, images * (positions_ ? positions_->kept.size() : plane));
  const Winograd* fastest = nullptr;
  for (const auto& winograd : winograds_) {
    const double cost = winograd->cost(images, out.height, out.width);
    if (cost < least) {
      least = cost;
      fastest = winograd.get();
    }
  }
  return fastest;
}

Conv::Plane Conv::output_plane(int64_t height, int64_t width) const {
  const int64_t sizes[2] = {height, width};
  int64_t out[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t reach = (desc_.kernel[i] - 1) * desc_.dilations[i] + 1;
    const bool possible = sizes[i] > 0 && sizes[i] <= (int64_t{1} << 24);
    const int64_t room = possible ? sizes[i] + desc_.pads[i] + desc_.pads[i + 2] - reach : -1;
    if (room < 0) {
      invalid("an input plane of " + plane_text(height, width) + " is too small for a kernel of " +
              plane_text(desc_.kernel[0], desc_.kernel[1]) + ", or empty");
    }
    out[i] = room / desc_.strides[i] + 1;
  }
  if (positions_ && (positions_->height != out[0] || positions_->width != out[1])) {
    invalid("the mask is " + plane_text(positions_->height, positions_->width) +
            " but an input plane of " + plane_text(height, width) + " has an output plane of " +
            plane_text(out[0], out[1]) + "; run the model at the input size it was masked for");
  }
  return {out[0], out[1]};
}

// Of mr_ rows each: as many as leave the rows in the first-level cache for the next panel. Calls of
// four tiles make the expansion of 112x112 with 16 channels to 96 8% faster than calls of one
// (EPYC, Zen 4, AVX-512), calls of eight another 5% (Zen 3, AVX2). Of three rows each, calls of
// sixteen make those of 24 and 32 channels at 56x56 and 28x28 2 to 4% faster (Zen 4, AVX2).
size_t Conv::tiles_per_call() const {
  constexpr size_t kMost = 8;
  constexpr size_t kMostRows = 48;  // where the tiles are low
  constexpr size_t kRowFloats = 4096;
  const auto depth =
      static_cast<size_t>(desc_.in_channels / desc_.group * desc_.kernel[0] * desc_.kernel[1]);
  return std::clamp<size_t>(kRowFloats / (depth * mr_), 1, std::max(kMost, kMostRows / mr_));
}

bool is_pointwise(const semisparse_conv_desc& desc) {
  const auto is_one = [](int64_t v) { return v == 1; };
  return std::all_of(desc.kernel, desc.kernel + 2, is_one) && is_one(desc.group) &&
         std::all_of(desc.strides, desc.strides + 2, is_one) &&
         std::all_of(desc.pads, desc.pads + 4, [](int64_t pad) { return pad == 0; });
}

bool Conv::takes_gate() const {
  const auto no_padding = [](int64_t pad) { return pad == 0; };
  return dwconv_ == nullptr && desc_.group == 1 && !reads_nchw() && desc_.kernel[0] == 1 &&
         desc_.kernel[1] == 1 && std::all_of(desc_.pads, desc_.pads + 4, no_padding);
}

void Conv::each_tap(Plane out, const std::function<void(int64_t, int64_t)>& f) const {
  const auto taps = [&](int64_t out_y, int64_t out_x) {
    for (int64_t ky = 0; ky < desc_.kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < desc_.kernel[1]; ++kx) {
        f(out_y * desc_.strides[0] - desc_.pads[0] + ky * desc_.dilations[0],
          out_x * desc_.strides[1] - desc_.pads[1] + kx * desc_.dilations[1]);
      }
    }
  };
  if (positions_) {
    for (const Positions::Place& place : positions_->kept) taps(place.y, place.x);
  } else {
    for (size_t p = 0; p < out.positions(); ++p) {
      taps(static_cast<int64_t>(p) / out.width, static_cast<int64_t>(p) % out.width);
    }
  }
}

std::vector<uint8_t> Conv::reads(Plane in) const {
  std::vector<uint8_t> read(in.positions());
  each_tap(output_plane(in.height, in.width), [&](int64_t y, int64_t x) {
    const bool inside = y >= 0 && x >= 0 && y < in.height && x < in.width;
    if (inside) read[static_cast<size_t>(y * in.width + x)] = 1;
  });
  return read;
}

void Conv::keep_read(Plane plane, const std::vector<uint8_t>& read) {
  const bool all = std::all_of(read.begin(), read.end(), [](uint8_t r) { return r != 0; });
  if (all || !winograds_.empty()) return;
  if (!positions_) {
    std::vector<int32_t> source(plane.positions());
    std::iota(source.begin(), source.end(), 0);
    positions_.emplace(source.data(), plane.height, plane.width);
  }
  positions_->keep_read(read);
}

bool Conv::runs_along_rows() const {
  return dwconv_ == nullptr && desc_.group == 1 && desc_.in_channels < kShortTap &&
         desc_.kernel[1] > 1 && desc_.dilations[1] == 1;
}

}  // namespace semisparse
