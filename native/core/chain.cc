#include "core/chain.h"

#include <algorithm>
#include <limits>

#include "core/c_enum.h"
#include "core/error.h"
#include "core/scratch.h"

namespace semisparse {
namespace {

bool has_expansion(semisparse_chain_form form) { return form != SEMISPARSE_DEPTHWISE_PROJECT; }
bool has_stem(semisparse_chain_form form) {
  return form == SEMISPARSE_STEM_DEPTHWISE_PROJECT || form == SEMISPARSE_STEM_DEPTHWISE;
}
bool has_projection(semisparse_chain_form form) {
  return form != SEMISPARSE_EXPAND_DEPTHWISE && form != SEMISPARSE_STEM_DEPTHWISE;
}

const semisparse_chain_stage& checked(const semisparse_chain_stage& stage, const char* name,
                                      semisparse_layout layout = SEMISPARSE_NHWC) {
  if (stage.desc == nullptr || stage.weights == nullptr) {
    invalid(std::string(name) + " of the chain lacks its desc or its weights; both must be given");
  }
  if (number_of(stage.desc->input_layout) != layout) {
    invalid(std::string(name) + " of the chain has input_layout " +
            std::to_string(number_of(stage.desc->input_layout)) + "; it must be " +
            (layout == SEMISPARSE_NHWC ? "NHWC" : "NCHW"));
  }
  return stage;
}

const semisparse_chain_stage& pointwise(const semisparse_chain_stage& stage, const char* name) {
  if (!is_pointwise(*checked(stage, name).desc)) {
    invalid(std::string(name) +
            " of the chain is no pointwise convolution; its kernel, strides and group must be 1 "
            "and its pads 0");
  }
  return stage;
}

const semisparse_chain_stage& stem(const semisparse_chain_stage& stage) {
  const int64_t group = checked(stage, "the stem", SEMISPARSE_NCHW).desc->group;
  if (group != 1) {
    invalid("the stem of the chain has group " + std::to_string(group) + "; it must be 1");
  }
  return stage;
}

const semisparse_chain_stage& depthwise(const semisparse_chain_stage& stage) {
  const semisparse_conv_desc& d = *checked(stage, "the depthwise stage").desc;
  if (d.group != d.in_channels || d.group != d.out_channels) {
    invalid("the depthwise stage of the chain has group " + std::to_string(d.group) + " for " +
            std::to_string(d.in_channels) + " input and " + std::to_string(d.out_channels) +
            " output channels; all three must be equal");
  }
  return stage;
}

void check_follows(const Conv& before, const Conv& after) {
  if (before.desc().out_channels == after.desc().in_channels) return;
  invalid("a stage of the chain has " + std::to_string(before.desc().out_channels) +
          " output channels and the next one " + std::to_string(after.desc().in_channels) +
          " input channels; they must be equal");
}

}  // namespace

Chain::Chain(semisparse_chain_form form, const semisparse_chain_stage* stages, const IsaInfo& isa)
    : depthwise_(depthwise(stages[has_expansion(form) ? 1 : 0]), isa) {
  if (has_expansion(form)) {
    expand_.emplace(has_stem(form) ? stem(stages[0]) : pointwise(stages[0], "the expansion"), isa);
    check_follows(*expand_, depthwise_);
    kernel_name_ = std::string(expand_->kernel_name()) + " + ";
  }
  kernel_name_ += depthwise_.kernel_name();
  if (has_projection(form)) {
    project_.emplace(pointwise(stages[has_expansion(form) ? 2 : 1], "the projection"), isa);
    check_follows(depthwise_, *project_);
    kernel_name_ += std::string(" + ") + project_->kernel_name();
  }
  // Masks that do not follow one another fail here and not at the first run.
  if (expand_ && expand_->positions() != nullptr) {
    const Positions& expanded = *expand_->positions();
    const Conv::Plane filtered = depthwise_.output_plane(expanded.height, expanded.width);
    if (project_) project_->output_plane(filtered.height, filtered.width);
  }
  if (project_ && depthwise_.positions() != nullptr) {
    project_->output_plane(depthwise_.positions()->height, depthwise_.positions()->width);
  }
  keep_read();
  list_taps();
}

// Of each stage only what the next one reads is computed or filled. At 14x14 with 384 channels and
// a mask of 0.75 on the projection alone, the depthwise stage took 9 instead of 26 us.
void Chain::keep_read() {
  if (project_ && project_->positions() != nullptr && !depthwise_.has_means()) {
    const Positions& positions = *project_->positions();
    const Conv::Plane plane{positions.height, positions.width};
    depthwise_.keep_read(plane, project_->reads(plane));
  }
  if (!expand_ || expand_->has_means()) return;
  const Positions* expanded = expand_->positions();
  const Positions* filtered = depthwise_.positions();
  if (filtered == nullptr) return;
  const semisparse_conv_desc& d = depthwise_.desc();
  Conv::Plane plane{0, 0};
  if (expanded != nullptr) {
    plane = {expanded->height, expanded->width};
  } else if (d.strides[0] == 1 && d.strides[1] == 1) {
    plane = {filtered->height + (d.kernel[0] - 1) * d.dilations[0] - d.pads[0] - d.pads[2],
             filtered->width + (d.kernel[1] - 1) * d.dilations[1] - d.pads[1] - d.pads[3]};
  }
  // With larger strides several input planes have the same output plane; and only a filter as large
  // as the plane has one that is many times as large.
  const bool known = plane.height > 0 && plane.width > 0 && plane.height <= 4 * filtered->height &&
                     plane.width <= 4 * filtered->width;
  if (!known) return;
  expand_->keep_read(plane, depthwise_.reads(plane));
}

// A masked position of the expansion is not copied to where it is read: the depthwise convolution's
// taps go to what it would be a copy of.
void Chain::list_taps() {
  if (!expand_ || expand_->has_means() || expand_->positions() == nullptr) return;
  const Positions& expanded = *expand_->positions();
  const auto plane = static_cast<size_t>(expanded.height * expanded.width);
  const size_t channels = depthwise_.in_channels();
  const bool too_large = (plane + 2) * channels > std::numeric_limits<uint32_t>::max();
  if (too_large || (expanded.copies.empty() && expanded.blank.empty())) return;
  expand_->leave_masked();
  const std::vector<int32_t> sources = expanded.source_map();
  const Conv::Plane out = depthwise_.output_plane(expanded.height, expanded.width);
  depthwise_.each_tap(out, [&](int64_t y, int64_t x) {
    size_t place = plane;
    if (y >= 0 && x >= 0 && y < expanded.height && x < expanded.width) {
      const int32_t source = sources[static_cast<size_t>(y * expanded.width + x)];
      place = source < 0 ? plane + 1 : static_cast<size_t>(source);
    }
    taps_.push_back(static_cast<uint32_t>(place * channels));
  });
}

Conv::Plane Chain::output_plane(int64_t height, int64_t width) const {
  const Conv::Plane expanded = stages().expanded({height, width});
  const Conv::Plane plane = depthwise_.output_plane(expanded.height, expanded.width);
  if (project_) project_->output_plane(plane.height, plane.width);
  return plane;
}

void Chain::run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
                float* y, const Parallel& parallel) const {
  const Conv::Plane in{height, width};
  const Conv::Plane out = output_plane(height, width);
  const int64_t plane = std::max(height * width, out.height * out.width);
  if (batch < 0 || (batch > 0 && plane > std::numeric_limits<int32_t>::max() / batch)) {
    invalid("a batch of " + std::to_string(batch) + " with " + std::to_string(plane) +
            " positions each does not fit in 31 bits");
  }
  if (residual != nullptr && !project_) {
    invalid("a chain that ends with its depthwise stage adds no residual; it must be NULL");
  }
  if (batch == 0) return;
  if (!last().has_means()) return compute(x, batch, in, residual, y, parallel);
  last().complete_means(static_cast<size_t>(batch), residual, y, parallel,
                        [&](float* linear) { compute(x, batch, in, nullptr, linear, parallel); });
}

// All but what the last stage's means make of it.
void Chain::compute(const float* x, int64_t batch, Conv::Plane in, const float* residual, float* y,
                    const Parallel& parallel) const {
  const std::shared_ptr<const Bands> in_bands = bands(in);
  if (in_bands != nullptr) {
    in_bands->run(stages(), {x, static_cast<size_t>(batch), residual, y}, parallel);
  } else {
    run_stages(x, batch, in, residual, y, parallel);
  }
}

// Null where one stage is better run after the other, or has to be: means may be of positions of
// other bands.
std::shared_ptr<const Bands> Chain::bands(Conv::Plane in) const {
  const bool early_means =
      (expand_ && expand_->has_means()) || (project_ && depthwise_.has_means());
  if (early_means || !Bands::suit(stages(), in)) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (bands_ == nullptr || bands_plane_.height != in.height || bands_plane_.width != in.width) {
    bands_ = std::make_shared<Bands>(stages(), in);
    bands_plane_ = in;
  }
  return bands_->fit() ? bands_ : nullptr;
}

// One stage after the other, on planes that fit the cache.
void Chain::run_stages(const float* x, int64_t batch, Conv::Plane in, const float* residual,
                       float* y, const Parallel& parallel) const {
  const Conv::Plane mid = stages().expanded(in);
  const Conv::Plane out = depthwise_.output_plane(mid.height, mid.width);
  if (!taps_.empty() && batch > 1) {
    // Taps are listed for one image.
    const size_t outs = out.positions() * out_channels();
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      run_stages(x + i * in.positions() * in_channels(), 1, in,
                 residual == nullptr ? nullptr : residual + i * outs, y + i * outs, parallel);
    }
    return;
  }
  const size_t channels = depthwise_.in_channels();
  const auto images = static_cast<size_t>(batch);
  const size_t special = taps_.empty() ? 0 : 2;
  const size_t expanded = expand_ ? (images * mid.positions() + special) * channels : 0;
  const ThreadScratch memory(expanded + (project_ ? images * out.positions() * channels : 0));
  float* scratch = memory.data();
  if (expand_) {
    expand_->run(x, batch, in.height, in.width, nullptr, scratch, parallel);
    x = scratch;
  }
  const uint32_t* taps = nullptr;
  if (!taps_.empty()) {
    float* behind = scratch + mid.positions() * channels;
    std::fill_n(behind, channels, 0.0f);
    expand_->write_blank(behind + channels);
    taps = taps_.data();
  }
  if (!project_) {
    return depthwise_.compute(x, batch, mid.height, mid.width, nullptr, y, parallel, nullptr, taps);
  }
  float* filtered = scratch + expanded;
  depthwise_.run(x, batch, mid.height, mid.width, nullptr, filtered, parallel, nullptr, taps);
  project_->compute(filtered, batch, out.height, out.width, residual, y, parallel);
}

}  // namespace semisparse
