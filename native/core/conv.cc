#include "core/conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "core/c_enum.h"
#include "core/error.h"

namespace semisparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Work of one task, in floating-point operations: some tens of microseconds, so that handing it out
// (about one) costs little and the last task of a layer leaves the others idle only briefly.
constexpr size_t kTaskFlops = size_t{4} << 20;
constexpr size_t kSmallestTaskFlops = size_t{256} << 10;
constexpr size_t kTasksWanted = 8;
// With fewer input channels than this the taps are too short for the kernel's inner loop, and the
// input is small enough to be copied into a padded plane where a filter row is one long tap.
constexpr int64_t kShortTap = 16;
constexpr size_t kWidestPanel = 64;
constexpr size_t kLineFloats = 16;
constexpr size_t kCopiedFloats = 8192;
// Every task streams its panel from beyond the cache once, which enough rows must pay for.
constexpr size_t kRowsPerStream = 96;

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

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
  const int activation = number_of(d.activation);
  if (activation < SEMISPARSE_IDENTITY || activation > SEMISPARSE_SIGMOID) {
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

// One run, and its division into tasks.
struct Conv::Work {
  Geometry geometry;
  const float* residual;
  float* y;
  size_t channels;  // of a tap
  size_t images, rows;
  bool streams;        // the output does not stay in the cache, so its lines are fetched ahead
  bool spreads;        // linear parts go to several places, each with a residual of its own
  bool by_panel;       // a task is one panel's rows; else all panels of its rows
  size_t block_depth;  // of a panel, what stays in the cache over all rows
  size_t rows_per_task, row_tasks, tasks;

  size_t taps() const { return geometry.taps.size(); }
};

Conv::Conv(const semisparse_conv_desc& desc, const float* weights, const float* bias,
           const int32_t* source, int64_t height, int64_t width, const IsaInfo& isa)
    : desc_(desc), epilogue_(&epilogue_kernel(isa.isa)) {
  check(desc);
  const auto outputs = static_cast<size_t>(desc.out_channels);
  check_finite("weight", weights,
               outputs * static_cast<size_t>(desc.in_channels / desc.group * desc.kernel[0] *
                                             desc.kernel[1]));
  if (bias != nullptr) check_finite("bias", bias, outputs);
  if (source != nullptr) positions_.emplace(source, height, width);

  lo_ = -kInfinity;
  hi_ = kInfinity;
  switch (desc.activation) {
    case SEMISPARSE_IDENTITY:
      break;
    case SEMISPARSE_RELU:
      lo_ = 0;
      break;
    case SEMISPARSE_CLIP:
      lo_ = desc.activation_a;
      hi_ = desc.activation_b;
      break;
    case SEMISPARSE_LEAKY_RELU:
      activate_ = epilogue_->leaky_relu;
      break;
    case SEMISPARSE_SILU:
      activate_ = epilogue_->silu;
      break;
    case SEMISPARSE_HARD_SWISH:
      activate_ = epilogue_->hard_swish;
      break;
    case SEMISPARSE_SIGMOID:
      activate_ = epilogue_->sigmoid;
      break;
  }

  // Kernels load whole vectors of it, past the last channel of a panel.
  bias_ = make_buffer(outputs + kWidestPanel);
  std::fill_n(bias_.get(), outputs + kWidestPanel, 0.0f);
  if (bias != nullptr) std::copy_n(bias, outputs, bias_.get());
  zeros_ = make_buffer(static_cast<size_t>(desc.in_channels));
  std::fill_n(zeros_.get(), desc.in_channels, 0.0f);

  const bool depthwise = desc.group == desc.in_channels && desc.group == desc.out_channels;
  if (depthwise) {
    pack_depthwise(weights, isa.isa);
    kernel_name_ = dwconv_->name;
  } else {
    pack_panels(weights, isa.isa);
    kernel_name_ = panels_.front().kernel->name;
    prepare_winograd(isa.isa);
  }

  if (positions_ && !positions_->blank.empty()) {
    blank_row_ = make_buffer(outputs);
    epilogue_->clamp(bias_.get(), nullptr, blank_row_.get(), outputs, lo_, hi_);
    activate(blank_row_.get(), outputs);
  }
}

void Conv::pack_panels(const float* weights, Isa isa) {
  const auto group = static_cast<size_t>(desc_.group);
  const size_t inputs = static_cast<size_t>(desc_.in_channels) / group;
  const size_t outputs = static_cast<size_t>(desc_.out_channels) / group;
  const auto taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  const size_t unit = igemm_narrowest(isa);

  // As few panels as the widest kernel allows, as equal as whole vectors allow: 160 channels are
  // 64 + 48 + 48 rather than 64 + 64 + 32, so that none is left with too few accumulators.
  const size_t units = ceil_div(outputs, unit);
  const size_t count = ceil_div(units * unit, igemm_widest(isa));
  size_t floats = 0;
  mr_ = std::numeric_limits<size_t>::max();
  for (size_t g = 0; g < group; ++g) {
    size_t first = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t nr = (units / count + (i < units % count ? 1 : 0)) * unit;
      Panel panel;
      panel.kernel = igemm_kernel(isa, nr);
      if (panel.kernel == nullptr) {
        throw Error(SEMISPARSE_INTERNAL,
                    "no kernel computes " + std::to_string(nr) + " channels at once");
      }
      panel.first = g * outputs + first;
      panel.count = std::min(nr, outputs - first);
      panel.inputs = g * inputs;
      panel.weights = floats;
      panels_.push_back(panel);
      mr_ = std::min(mr_, panel.kernel->mr);
      first += panel.count;
      floats += taps * inputs * nr;
    }
  }

  weights_ = make_buffer(floats);
  for (const Panel& panel : panels_) {
    const size_t nr = panel.kernel->nr;
    float* to = weights_.get() + panel.weights;
    for (size_t t = 0; t < taps; ++t) {
      for (size_t c = 0; c < inputs; ++c) {
        for (size_t j = 0; j < nr; ++j) {
          *to++ = j < panel.count ? weights[((panel.first + j) * inputs + c) * taps + t] : 0.0f;
        }
      }
    }
  }
}

void Conv::pack_depthwise(const float* weights, Isa isa) {
  dwconv_ = &dwconv_kernel(isa);
  const auto channels = static_cast<size_t>(desc_.out_channels);
  const auto taps = static_cast<size_t>(desc_.kernel[0] * desc_.kernel[1]);
  dw_stride_ = ceil_div(channels, 16) * 16;  // whole vectors of the widest instruction set
  weights_ = make_buffer(taps * dw_stride_);
  for (size_t c = 0; c < dw_stride_; ++c) {
    for (size_t t = 0; t < taps; ++t) {
      weights_[t * dw_stride_ + c] = c < channels ? weights[c * taps + t] : 0.0f;
    }
  }
}

void Conv::prepare_winograd(Isa isa) {
  if (!Winograd::suits(desc_)) return;
  std::vector<Winograd::Panel> panels;
  for (const Panel& panel : panels_) {
    panels.push_back({panel.kernel, panel.first, panel.count, weights_.get() + panel.weights});
  }
  winograd_.emplace(desc_, std::move(panels), positions_ ? &*positions_ : nullptr, isa);
  if (positions_ && !winograd_->pays(1, positions_->height, positions_->width)) {
    winograd_.reset();
  } else {
    kernel_name_ = std::string(winograd_kernel(isa).name) + " + " + kernel_name_;
  }
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

bool Conv::runs_along_rows() const {
  return dwconv_ == nullptr && desc_.group == 1 && desc_.in_channels < kShortTap &&
         desc_.kernel[1] > 1 && desc_.dilations[1] == 1;
}

void Conv::run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
               float* y, const Parallel& parallel) const {
  const Plane out = output_plane(height, width);
  const int64_t plane = out.height * out.width;
  if (batch < 0 || (batch > 0 && plane > std::numeric_limits<uint32_t>::max() / batch)) {
    invalid("a batch of " + std::to_string(batch) + " with " + std::to_string(plane) +
            " positions each does not fit in 32 bits");
  }
  if (batch == 0) return;

  Work work{};
  Geometry& g = work.geometry;
  g.x = x;
  g.height = height;
  g.width = width;
  g.in_channels = desc_.in_channels;
  g.out_height = out.height;
  g.out_width = out.width;
  g.stride_y = desc_.strides[0];
  g.stride_x = desc_.strides[1];
  g.pad_top = desc_.pads[0];
  g.pad_left = desc_.pads[1];
  g.zeros = zeros_.get();
  g.positions = positions_ ? &*positions_ : nullptr;
  g.rows_per_image = positions_ ? positions_->kept.size() : static_cast<size_t>(plane);
  work.residual = residual;
  work.y = y;
  work.images = static_cast<size_t>(batch);
  work.rows = work.images * g.rows_per_image;
  // 112x112 with 32 channels, depthwise: 0.29 to 0.235 ms; where the output fits, 3% slower.
  work.streams =
      work.images * static_cast<size_t>(plane) * out_channels() * sizeof(float) > l2_cache_bytes();
  work.spreads = residual != nullptr && positions_ && !positions_->copies.empty();

  const bool along_rows = runs_along_rows();
  std::unique_ptr<ScratchSlot::Piece> scratch;
  if (along_rows) {
    const int64_t padded_height = height + desc_.pads[0] + desc_.pads[2];
    const int64_t padded_width = width + desc_.pads[1] + desc_.pads[3];
    scratch = scratch_.take(
        static_cast<size_t>(batch * padded_height * padded_width * desc_.in_channels));
    pad_input(x, batch, height, width, scratch->data.get(), parallel);
    g.x = scratch->data.get();
    g.height = padded_height;
    g.width = padded_width;
    g.pad_top = g.pad_left = 0;
  }
  for (int64_t ky = 0; ky < desc_.kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < (along_rows ? 1 : desc_.kernel[1]); ++kx) {
      const int64_t dy = ky * desc_.dilations[0];
      const int64_t dx = kx * desc_.dilations[1];
      g.taps.push_back({dy, dx});
      g.offsets.push_back((dy * g.width + dx) * desc_.in_channels);
    }
  }
  work.channels =
      static_cast<size_t>(desc_.in_channels / desc_.group * (along_rows ? desc_.kernel[1] : 1));

  if (winograd_ && winograd_->pays(work.images, out.height, out.width)) {
    run_winograd(work, parallel);
    return;
  }
  divide(work);
  if (dwconv_ != nullptr) {
    parallel(work.tasks, [&](size_t task) { dwconv_task(work, task); });
  } else {
    parallel(work.tasks, [&](size_t task) { igemm_task(work, task); });
  }
  if (scratch != nullptr) scratch_.give_back(std::move(scratch));
}

void Conv::pad_input(const float* x, int64_t batch, int64_t height, int64_t width, float* padded,
                     const Parallel& parallel) const {
  const auto row_floats = static_cast<size_t>(width * desc_.in_channels);
  const auto left = static_cast<size_t>(desc_.pads[1] * desc_.in_channels);
  const auto right = static_cast<size_t>(desc_.pads[3] * desc_.in_channels);
  const size_t line = left + row_floats + right;
  const int64_t padded_height = height + desc_.pads[0] + desc_.pads[2];
  const int64_t lines = batch * padded_height;
  constexpr int64_t kLinesPerTask = 32;
  const int64_t tasks = (lines + kLinesPerTask - 1) / kLinesPerTask;
  parallel(static_cast<size_t>(tasks), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * kLinesPerTask;
    for (int64_t i = begin; i < std::min(lines, begin + kLinesPerTask); ++i) {
      float* to = padded + static_cast<size_t>(i) * line;
      const int64_t row = i % padded_height - desc_.pads[0];
      if (row < 0 || row >= height) {
        std::fill_n(to, line, 0.0f);
        continue;
      }
      const float* from = x + static_cast<size_t>(i / padded_height * height + row) * row_floats;
      std::fill_n(to, left, 0.0f);
      std::memcpy(to + left, from, row_floats * sizeof(float));
      std::fill_n(to + left + row_floats, right, 0.0f);
    }
  });
}

void Conv::run_winograd(const Work& work, const Parallel& parallel) const {
  const Winograd::Run run{work.geometry, work.images, bias_.get(), work.residual, work.y, lo_, hi_};
  winograd_->run(run, parallel, [&](const Winograd::Done& done) { finish_winograd(work, done); });
  if (!positions_ || positions_->blank.empty()) return;
  parallel(kTasksWanted,
           [&](size_t task) { blank_share(work, task, kTasksWanted, 0, out_channels()); });
}

void Conv::finish_winograd(const Work& work, const Winograd::Done& done) const {
  if (!done.finite) {
    recompute(work, done);
  } else if (activate_ != nullptr) {
    const Geometry& g = work.geometry;
    const Panel& panel = panels_[done.panel];
    const size_t first = done.image * static_cast<size_t>(g.out_height * g.out_width);
    for (size_t i = 0; i < done.count; ++i) {
      const size_t position = first + done.entries[i].position;
      activate(work.y + position * out_channels() + panel.first, panel.count);
    }
  }
}

// Winograd's transforms spread what is infinite or not a number over a whole tile, so such a tile
// is computed directly instead.
void Conv::recompute(const Work& work, const Winograd::Done& done) const {
  const Geometry& g = work.geometry;
  const auto height = static_cast<size_t>(g.out_height);
  const auto width = static_cast<size_t>(g.out_width);
  const Panel& panel = panels_[done.panel];
  // The computed positions before `position` of the plane.
  const auto rows_before = [&](size_t position) {
    if (!positions_) return position;
    const auto& kept = positions_->kept;
    const auto at =
        std::lower_bound(kept.begin(), kept.end(), position,
                         [](const Positions::Place& p, size_t q) { return p.position < q; });
    return static_cast<size_t>(at - kept.begin());
  };
  const size_t image = done.image * g.rows_per_image;
  for (size_t y = done.y; y < std::min(height, done.y + winograd::kOutputs); ++y) {
    const size_t last = std::min(width, done.x + winograd::kOutputs);
    const size_t begin = image + rows_before(y * width + done.x);
    const size_t end = image + rows_before(y * width + last);
    igemm_tiles(work, begin, end, done.panel, done.panel + 1);
    copy_rows(work, begin, end, panel.first, panel.count);
  }
}

void Conv::divide(Work& work) const {
  const size_t depth = work.taps() * work.channels;  // K of one group
  const size_t weight_bytes = depth * out_channels() * sizeof(float);
  // Weights that stay in the second-level cache beside the rows are best met once per row, so that
  // each row is read once; larger ones panel by panel, so that a panel stays there over all rows.
  work.by_panel = dwconv_ == nullptr && panels_.size() > 1 && weight_bytes > l2_cache_bytes() / 4;
  const size_t columns = work.by_panel ? ceil_div(out_channels(), panels_.size()) : out_channels();
  const size_t row_flops = 2 * (dwconv_ != nullptr ? work.taps() : depth) * columns;
  const size_t flops = work.rows * row_flops * (work.by_panel ? panels_.size() : 1);
  const size_t target = std::max(kSmallestTaskFlops, std::min(kTaskFlops, flops / kTasksWanted));
  size_t rows = std::max<size_t>(1, target / row_flops);
  if (mr_ != 0) rows = ceil_div(rows, mr_) * mr_;
  work.block_depth = depth;
  if (work.by_panel && depth * columns * sizeof(float) > l2_cache_bytes() / 2) {
    work.block_depth = std::max<size_t>(1, l2_cache_bytes() / 4 / (columns * sizeof(float)));
    rows = std::max(rows, kRowsPerStream);
  }
  work.row_tasks = std::max<size_t>(1, ceil_div(work.rows, rows));
  work.rows_per_task = ceil_div(work.rows, work.row_tasks);
  work.tasks = work.row_tasks * (work.by_panel ? panels_.size() : 1);
}

void Conv::igemm_task(const Work& work, size_t task) const {
  const size_t slice = task % work.row_tasks;
  const size_t begin = std::min(work.rows, slice * work.rows_per_task);
  const size_t end = std::min(work.rows, begin + work.rows_per_task);
  if (work.by_panel) {
    const Panel& panel = panels_[task / work.row_tasks];
    igemm_panel(work, begin, end, panel);
    copy_rows(work, begin, end, panel.first, panel.count);
    blank_share(work, slice, work.row_tasks, panel.first, panel.count);
    return;
  }
  // Rows are copied while they are still in the cache.
  const size_t step = ceil_div(kCopiedFloats, out_channels() * mr_) * mr_;
  for (size_t from = begin; from < end; from += step) {
    const size_t to = std::min(end, from + step);
    igemm_tiles(work, from, to, 0, panels_.size());
    copy_rows(work, from, to, 0, out_channels());
  }
  blank_share(work, slice, work.row_tasks, 0, out_channels());
}

// The parts of a tile that no panel changes.
igemm::Tile Conv::tile_of(const Work& work, Rows& rows, size_t row, size_t m) const {
  rows.fill(row, m, Rows::Order::kByTap);
  igemm::Tile tile{};
  tile.m = m;
  tile.taps = work.taps();
  tile.channels = work.channels;
  tile.rows = rows.pointers();
  tile.offsets = rows.offsets();
  tile.dests = rows.dests();
  tile.ldy = out_channels();
  tile.fetch_y = work.streams;
  tile.lo = lo_;
  tile.hi = hi_;
  return tile;
}

void Conv::set_panel(igemm::Tile& tile, const Work& work, const Panel& panel) const {
  tile.row_offset = panel.inputs;
  tile.weights = weights_.get() + panel.weights;
  tile.init = bias_.get() + panel.first;
  tile.y = work.y + panel.first;
  tile.residual = work.residual == nullptr ? nullptr : work.residual + panel.first;
  tile.n = panel.count;
}

void Conv::igemm_tiles(const Work& work, size_t begin, size_t end, size_t first_panel,
                       size_t last_panel) const {
  Rows rows(work.geometry, mr_);
  // Tiles of equal height: 49 rows are five of 5 and four of 6, not eight of 6 and one of 1.
  const size_t tiles = ceil_div(end - begin, mr_);
  const Buffer parked = make_buffer(work.spreads ? mr_ * kWidestPanel : 0);
  for (size_t i = 0; i < tiles; ++i) {
    const size_t from = begin + (end - begin) * i / tiles;
    const size_t to = begin + (end - begin) * (i + 1) / tiles;
    igemm::Tile tile = tile_of(work, rows, from, to - from);
    if (work.spreads) tile.park = parked.get();
    for (size_t j = first_panel; j < last_panel; ++j) {
      set_panel(tile, work, panels_[j]);
      panels_[j].kernel->run(tile);
      finish_tile(work, rows, from, to, panels_[j], parked.get());
    }
  }
}

// One panel's rows. Where the panel is larger than the cache, a block of it that fits is used for
// all the rows before the next one is touched, and the accumulators wait in between; so the weights
// come from memory once. The next block, or the next panel, is fetched meanwhile. On a 7x7 plane
// with 512 channels: 2.42 ms in ONNX Runtime, 2.22 ms with blocks alone, 2.10 ms with the fetching
// (EPYC, Zen 4, weights from memory as in the whole network; blocks of an eighth of the cache
// gave 2.32 ms).
void Conv::igemm_panel(const Work& work, size_t begin, size_t end, const Panel& panel) const {
  const size_t nr = panel.kernel->nr;
  Rows rows(work.geometry, mr_);
  // Whole taps, or parts of one where there is only one.
  const size_t taps_step =
      work.taps() == 1 ? 1 : std::clamp<size_t>(work.block_depth / work.channels, 1, work.taps());
  const size_t channels_step =
      work.taps() == 1 ? std::min(work.block_depth, work.channels) : work.channels;
  const bool parks = taps_step < work.taps() || channels_step < work.channels;
  const Buffer parked = make_buffer(parks || work.spreads ? (end - begin) * nr : 0);
  const size_t tiles = ceil_div(end - begin, mr_);
  for (size_t tap = 0; tap < work.taps(); tap += taps_step) {
    for (size_t channel = 0; channel < work.channels; channel += channels_step) {
      const bool first = tap == 0 && channel == 0;
      const bool last = tap + taps_step >= work.taps() && channel + channels_step >= work.channels;
      const size_t taps = std::min(taps_step, work.taps() - tap);
      const size_t channels = std::min(channels_step, work.channels - channel);
      const size_t block = taps * channels * nr;
      const float* weights = weights_.get() + panel.weights + (tap * work.channels + channel) * nr;
      // Spread over all tiles: so many lines every four channels.
      const size_t turns = taps * (channels / 4);
      const size_t lines = ceil_div(block / kLineFloats, std::max<size_t>(1, tiles * turns));
      for (size_t i = 0; i < tiles; ++i) {
        const size_t from = begin + (end - begin) * i / tiles;
        const size_t to = begin + (end - begin) * (i + 1) / tiles;
        float* park = parked.get() + (from - begin) * nr;
        igemm::Tile tile = tile_of(work, rows, from, to - from);
        set_panel(tile, work, panel);
        if (tile.offsets != nullptr) {
          tile.offsets += tap;
        } else {
          tile.rows += tap * tile.m;
        }
        tile.taps = taps;
        tile.channels = channels;
        tile.row_offset += channel;
        tile.weights = weights;
        tile.prefetch = weights + block + i * turns * lines * kLineFloats;
        tile.prefetch_lines = lines;
        if (!first) {
          tile.init = park;
          tile.init_stride = nr;
        }
        if (!last || work.spreads) tile.park = park;
        panel.kernel->run(tile);
        if (last) finish_tile(work, rows, from, to, panel, park);
      }
    }
  }
}

// Rows [begin, end) of one panel after its last kernel. Where masked positions copy a linear part
// that a residual of their own is added to, that part is in `parked` and all places are finished
// here.
void Conv::finish_tile(const Work& work, Rows& rows, size_t begin, size_t end, const Panel& panel,
                       const float* parked) const {
  const size_t nr = panel.kernel->nr;
  if (work.spreads) {
    for (size_t i = 0; i < end - begin; ++i) {
      finish_row(work, parked + i * nr, rows.dests()[i], panel.first, panel.count);
    }
    finish_copies(work, begin, end, parked, nr, panel.first, panel.count);
  } else if (activate_ != nullptr) {
    for (size_t i = 0; i < end - begin; ++i) {
      activate(work.y + rows.dests()[i] * out_channels() + panel.first, panel.count);
    }
  }
}

void Conv::finish_row(const Work& work, const float* linear, size_t position, size_t channel,
                      size_t channels) const {
  const size_t at = position * out_channels() + channel;
  epilogue_->clamp(linear, work.residual + at, work.y + at, channels, lo_, hi_);
  activate(work.y + at, channels);
}

// Calls f(image, from, to) for the rows [begin, end) of each image, as indices into its kept
// positions.
template <typename F>
void Conv::each_image(size_t begin, size_t end, const F& f) const {
  const size_t per_image = positions_->kept.size();
  for (size_t image = begin / per_image; image * per_image < end; ++image) {
    f(image, std::max(begin, image * per_image) - image * per_image,
      std::min(end, (image + 1) * per_image) - image * per_image);
  }
}

// The masked positions that copy one of the rows [begin, end), whose linear parts are in `parked`.
void Conv::finish_copies(const Work& work, size_t begin, size_t end, const float* parked,
                         size_t stride, size_t channel, size_t channels) const {
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  const float* linear = parked;
  each_image(begin, end, [&](size_t image, size_t from, size_t to) {
    for (size_t row = from; row < to; ++row, linear += stride) {
      for (size_t i = positions_->copy_begin[row]; i < positions_->copy_begin[row + 1]; ++i) {
        finish_row(work, linear, image * plane + positions_->copies[i].dest, channel, channels);
      }
    }
  });
}

// Without a residual a masked position holds exactly what the position that it copies holds, so
// finished rows are copied. Doing this in the kernels, row by row, cost the layers with few
// channels their whole gain: how many copies a row has cannot be predicted.
void Conv::copy_rows(const Work& work, size_t begin, size_t end, size_t channel,
                     size_t channels) const {
  if (!positions_ || positions_->copies.empty() || work.residual != nullptr) return;
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  each_image(begin, end, [&](size_t image, size_t from, size_t to) {
    const size_t first = positions_->copy_begin[from];
    epilogue_->copy(positions_->copies.data() + first, positions_->copy_begin[to] - first,
                    work.y + image * plane * out_channels() + channel, out_channels(), channels);
  });
}

void Conv::dwconv_task(const Work& work, size_t task) const {
  constexpr size_t kStrip = 16;
  const size_t begin = std::min(work.rows, task * work.rows_per_task);
  const size_t end = std::min(work.rows, begin + work.rows_per_task);
  Rows rows(work.geometry, kStrip);
  const Buffer parked = make_buffer(work.spreads ? kStrip * out_channels() : 0);
  const auto infinity = std::numeric_limits<float>::infinity();
  uint32_t parked_rows[kStrip];
  std::iota(parked_rows, parked_rows + kStrip, 0u);
  dwconv::Strip strip;
  for (size_t from = begin; from < end; from += strip.m) {
    strip.m = rows.fill_alike(from, std::min(kStrip, end - from), Rows::Order::kByRow);
    strip.taps = work.taps();
    strip.channels = out_channels();
    strip.rows = rows.pointers();
    strip.offsets = rows.offsets();
    strip.columns = static_cast<size_t>(desc_.kernel[1]);
    strip.weights = weights_.get();
    strip.ldw = dw_stride_;
    strip.bias = bias_.get();
    strip.dests = work.spreads ? parked_rows : rows.dests();
    strip.y = work.spreads ? parked.get() : work.y;
    strip.residual = work.spreads ? nullptr : work.residual;
    strip.ldy = out_channels();
    strip.write_ahead = work.streams && !work.spreads ? kStrip : 0;
    strip.lo = work.spreads ? -infinity : lo_;
    strip.hi = work.spreads ? infinity : hi_;
    dwconv_->run(strip);
    if (work.spreads) {
      for (size_t i = 0; i < strip.m; ++i) {
        finish_row(work, parked.get() + i * out_channels(), rows.dests()[i], 0, out_channels());
      }
      finish_copies(work, from, from + strip.m, parked.get(), out_channels(), 0, out_channels());
    } else if (activate_ != nullptr) {
      for (size_t i = 0; i < strip.m; ++i) {
        activate(work.y + rows.dests()[i] * out_channels(), out_channels());
      }
    }
    copy_rows(work, from, from + strip.m, 0, out_channels());
  }
  blank_share(work, task, work.tasks, 0, out_channels());
}

// A task's share of the positions whose linear part is zero.
void Conv::blank_share(const Work& work, size_t share, size_t shares, size_t channel,
                       size_t channels) const {
  if (!positions_) return;
  const size_t blanks = work.images * positions_->blank.size();
  blank_rows(work, blanks * share / shares, blanks * (share + 1) / shares, channel, channels);
}

void Conv::blank_rows(const Work& work, size_t begin, size_t end, size_t channel,
                      size_t channels) const {
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  const size_t per_image = positions_->blank.size();
  for (size_t i = begin; i < end; ++i) {
    const size_t position = i / per_image * plane + positions_->blank[i % per_image];
    const size_t at = position * out_channels() + channel;
    if (work.residual == nullptr) {
      std::memcpy(work.y + at, blank_row_.get() + channel, channels * sizeof(float));
    } else {
      finish_row(work, bias_.get() + channel, position, channel, channels);
    }
  }
}

void Conv::activate(float* y, size_t n) const {
  if (activate_ != nullptr) activate_(y, n, desc_.activation_a);
}

}  // namespace semisparse
