#include "core/bands.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <unordered_map>
#include <unordered_set>

#include "core/division.h"
#include "core/scratch.h"

namespace semisparse {
namespace {

// What a position holds, as a source map says it; a dense layer has none.
class Sources {
 public:
  explicit Sources(const Conv* conv) {
    if (conv != nullptr && conv->positions() != nullptr) map_ = conv->positions()->source_map();
  }
  int64_t operator[](size_t position) const {
    return map_.empty() ? static_cast<int64_t>(position) : map_[position];
  }

 private:
  std::vector<int32_t> map_;
};

// Bytes of a row of the plane that the depthwise convolution reads, and of its output.
struct RowBytes {
  size_t in, out;
};

// `in` is what the depthwise convolution reads, here and below.
RowBytes row_bytes(const Stages& stages, Conv::Plane in) {
  const semisparse_conv_desc& d = stages.depthwise->desc();
  const Conv::Plane out = stages.depthwise->output_plane(in.height, in.width);
  const auto pixel = static_cast<size_t>(d.out_channels) * sizeof(float);
  return {static_cast<size_t>(in.width + d.pads[1] + d.pads[3]) * pixel,
          static_cast<size_t>(out.width) * pixel};
}

size_t reach(const semisparse_conv_desc& d, int axis) {
  return static_cast<size_t>((d.kernel[axis] - 1) * d.dilations[axis] + 1);
}

size_t rows_per_band(const Stages& stages, Conv::Plane in) {
  const semisparse_conv_desc& d = stages.depthwise->desc();
  const RowBytes row = row_bytes(stages, in);
  const size_t budget = l2_cache_bytes() / 2;
  const size_t one = reach(d, 0) * row.in + row.out;
  if (budget <= one) return 1;
  return 1 + (budget - one) / (static_cast<size_t>(d.strides[0]) * row.in + row.out);
}

}  // namespace

// What the depthwise convolution reads.
struct Bands::Reads {
  std::vector<uint8_t> padded;  // positions of the padded plane
};

bool Bands::suit(const Stages& stages, Conv::Plane chain_in) {
  const semisparse_conv_desc& d = stages.depthwise->desc();
  const Conv::Plane in = stages.expanded(chain_in);
  const RowBytes row = row_bytes(stages, in);
  const auto height = static_cast<size_t>(in.height);
  const int64_t padding[2] = {d.pads[0] + d.pads[2], d.pads[1] + d.pads[3]};
  // Much padding would be computed with for nothing, and places are counted in 32 bits.
  const bool mostly_padding =
      padding[0] > in.height || padding[1] > in.width ||
      (in.height + padding[0]) * (in.width + padding[1]) > std::numeric_limits<int32_t>::max();
  // Finding every tap of a large filter takes as long as multiplying, and in a window no tap is
  // beyond the edge: blocks of MNASNet at 28x28 with 120 channels and 5x5, 280 to 250 us. On planes
  // of 14x14 and 7x7, which have more edge, bands made that network 6% slower.
  const bool many_taps = d.kernel[0] * d.kernel[1] > 9 && in.width > 20;
  // One input and one output channel are a depthwise convolution, not a product.
  const bool products = (stages.expand == nullptr || !stages.expand->is_depthwise()) &&
                        (stages.project == nullptr || !stages.project->is_depthwise());
  return !mostly_padding && products && (many_taps || height * row.in > l2_cache_bytes() / 2) &&
         reach(d, 0) * row.in + row.out <= l2_cache_bytes() / 2;
}

Bands::Bands(const Stages& stages, Conv::Plane in)
    : chain_in_(stages.expand == nullptr ? in : stages.expand->padded_plane(in)),
      in_(stages.expanded(in)),
      out_(stages.depthwise->output_plane(in_.height, in_.width)) {
  const semisparse_conv_desc& d = stages.depthwise->desc();
  const bool padded = stages.expand != nullptr;
  pad_top_ = static_cast<size_t>(d.pads[0]);
  pad_left_ = static_cast<size_t>(d.pads[1]);
  pitch_ = static_cast<size_t>(padded ? in_.width + d.pads[1] + d.pads[3] : in_.width);
  channels_ = static_cast<size_t>(d.out_channels);
  for (int64_t ky = 0; ky < d.kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < d.kernel[1]; ++kx) {
      taps_.push_back(static_cast<size_t>(ky * d.dilations[0]) * pitch_ +
                      static_cast<size_t>(kx * d.dilations[1]));
    }
  }

  const auto out_rows = static_cast<size_t>(out_.height);
  const size_t bands =
      std::max(ceil_div(out_rows, rows_per_band(stages, in_)), std::min(kTasksWanted, out_rows));
  Reads reads{
      std::vector<uint8_t>(static_cast<size_t>(in_.height + d.pads[0] + d.pads[2]) * pitch_)};
  for (size_t i = 0; i < bands; ++i) {
    bands_.push_back(band_of(stages, out_rows * i / bands, out_rows * (i + 1) / bands, reads));
    most_filtered_ = std::max(most_filtered_, bands_.back().project.from.size());
  }
  if (!padded) return;

  // A row is kept from the first band that reads it to the last one.
  for (size_t i = 1; i < bands; ++i) {
    bands_[i].last = std::max(bands_[i].last, bands_[i - 1].last);
    bands_[i].kept = bands_[i - 1].last;
  }
  for (size_t i = bands; i-- > 0;) {
    Band& band = bands_[i];
    band.first = std::min(band.first, i + 1 < bands ? bands_[i + 1].first : band.last);
    band.kept = std::max(band.kept, band.first);
    band.last = std::max(band.last, band.kept);
  }
  for (const Band& band : bands_) {
    window_rows_ = std::max(window_rows_, band.last - band.first);
  }
  for (Band& band : bands_) {
    for (uint32_t& from : band.depthwise.from) from -= static_cast<uint32_t>(band.first * pitch_);
    if (stages.expand->leaves_masked()) {
      list_taps(stages, reads, band, &band == &bands_.back() ? nullptr : &band + 1);
    } else {
      band.halo = expansion(stages, reads, band, band.first, band.kept);
      band.fresh = expansion(stages, reads, band, band.kept, band.last);
    }
  }
}

// The band of output rows [begin, end), but for the expansion. What it computes goes to all places
// that hold it, in whatever rows: else the bands of 28x28 computed 14% more positions at sparsity
// 0.5 than there are.
Bands::Band Bands::band_of(const Stages& stages, size_t begin, size_t end, Reads& reads) const {
  const semisparse_conv_desc& d = stages.depthwise->desc();
  const auto width = static_cast<size_t>(out_.width);
  Band band{};
  const Sources last(stages.project != nullptr ? stages.project : stages.depthwise);
  Gatherer outputs;
  for (size_t p = 0; p < out_.positions(); ++p) {
    const int64_t source = last[p];
    if (source == Positions::kInNoList) continue;
    const size_t owner = source < 0 ? p : static_cast<size_t>(source);
    if (owner < begin * width || owner >= end * width) continue;
    outputs.add(source, static_cast<uint32_t>(source), static_cast<uint32_t>(p));
  }
  if (stages.project == nullptr) {
    band.depthwise = outputs.finish();
  } else {
    // What the depthwise convolution gives lies side by side, in the order of its plane.
    band.project = outputs.finish();
    const Sources filtered(stages.depthwise);
    std::vector<int64_t> wanted;
    for (const uint32_t from : band.project.from) wanted.push_back(filtered[from]);
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    Gatherer places;
    for (size_t i = 0; i < wanted.size(); ++i) {
      places.add(wanted[i], static_cast<uint32_t>(wanted[i]), static_cast<uint32_t>(i));
    }
    band.depthwise = places.finish();
    for (uint32_t& from : band.project.from) {
      const auto at = std::lower_bound(wanted.begin(), wanted.end(), filtered[from]);
      from = static_cast<uint32_t>(at - wanted.begin());
    }
  }

  if (stages.expand == nullptr) {
    read_in_place(d, band);
    return band;
  }
  band.first = std::numeric_limits<size_t>::max();
  for (uint32_t& from : band.depthwise.from) {
    const size_t y = from / width * static_cast<size_t>(d.strides[0]);
    const size_t x = from % width * static_cast<size_t>(d.strides[1]);
    from = static_cast<uint32_t>(y * pitch_ + x);
    band.first = std::min(band.first, y);
    band.last = std::max(band.last, y + reach(d, 0));
    for (const size_t tap : taps_) reads.padded[from + tap] = 1;
  }
  return band;
}

// Copying the input into a padded window took a fifth of the time of 112x112 with 32 channels.
void Bands::read_in_place(const semisparse_conv_desc& d, Band& band) const {
  for (uint32_t& from : band.depthwise.from) {
    const int64_t y = from / out_.width * d.strides[0] - d.pads[0];
    const int64_t x = from % out_.width * d.strides[1] - d.pads[1];
    const TapRange rows = taps_inside(y, d.dilations[0], d.kernel[0], in_.height);
    const TapRange columns = taps_inside(x, d.dilations[1], d.kernel[1], in_.width);
    band.depthwise.windows.push_back({rows.begin, rows.end, columns.begin, columns.end});
    from = static_cast<uint32_t>(y * in_.width + x);
  }
}

// Calls f(position, place in the band's window) for what is read of rows [begin, end), but for
// their padding.
template <typename F>
void Bands::each_read(const Reads& reads, const Band& band, size_t begin, size_t end,
                      const F& f) const {
  const auto height = static_cast<size_t>(in_.height);
  const auto width = static_cast<size_t>(in_.width);
  for (size_t row = std::max(begin, pad_top_); row < std::min(end, pad_top_ + height); ++row) {
    for (size_t x = 0; x < width; ++x) {
      const size_t place = row * pitch_ + pad_left_ + x;
      if (reads.padded[place] == 0) continue;
      f((row - pad_top_) * width + x, static_cast<uint32_t>(place - band.first * pitch_));
    }
  }
}

// The pixel that the first tap of an expanded position reads.
uint32_t Bands::expand_from(const semisparse_conv_desc& d, int64_t source) const {
  const int64_t y = source / in_.width * d.strides[0];
  return static_cast<uint32_t>(y * chain_in_.width + source % in_.width * d.strides[1]);
}

Gather Bands::expansion(const Stages& stages, const Reads& reads, const Band& band, size_t begin,
                        size_t end) const {
  const Sources sources(stages.expand);
  Gatherer gatherer;
  each_read(reads, band, band.first, begin, [&](size_t position, uint32_t place) {
    if (sources[position] >= 0) gatherer.add_present(sources[position], place);
  });
  each_read(reads, band, begin, end, [&](size_t position, uint32_t place) {
    const int64_t source = sources[position];
    gatherer.add(source, expand_from(stages.expand->desc(), source), place);
  });
  return gatherer.finish();
}

// The expansion of a band whose window holds what is computed once, each at the first place that
// wants it, and where the depthwise convolution's taps are therefore. What the next band wants too
// has to be in the rows that stay for it: at the first place there, as if that band began with
// them.
void Bands::list_taps(const Stages& stages, const Reads& reads, Band& band,
                      const Band* next) const {
  const Sources sources(stages.expand);
  const semisparse_conv_desc& d = stages.expand->desc();
  std::unordered_map<int64_t, uint32_t> homes;
  Gatherer halo;
  Gatherer fresh;
  each_read(reads, band, band.first, band.kept, [&](size_t position, uint32_t place) {
    const int64_t source = sources[position];
    if (source < 0 || !homes.try_emplace(source, place).second) return;
    halo.add(source, expand_from(d, source), place);
    fresh.add_present(source, place);
  });
  each_read(reads, band, band.kept, band.last, [&](size_t position, uint32_t place) {
    const int64_t source = sources[position];
    if (source < 0 || !homes.try_emplace(source, place).second) return;
    fresh.add(source, expand_from(d, source), place);
  });
  if (next != nullptr) {
    std::unordered_set<int64_t> stays;
    each_read(reads, band, next->first, next->kept, [&](size_t position, uint32_t place) {
      const int64_t source = sources[position];
      if (source < 0 || !stays.insert(source).second || homes.at(source) == place) return;
      fresh.add(source, expand_from(d, source), place);
    });
  }
  band.halo = halo.finish();
  band.fresh = fresh.finish();

  const auto height = static_cast<size_t>(in_.height);
  const auto width = static_cast<size_t>(in_.width);
  for (const uint32_t from : band.depthwise.from) {
    for (const size_t tap : taps_) {
      const size_t place = band.first * pitch_ + from + tap;
      const size_t y = place / pitch_ - pad_top_;  // of the padding they are large
      const size_t x = place % pitch_ - pad_left_;
      size_t at = zero_place();
      if (y < height && x < width) {
        const int64_t source = sources[y * width + x];
        at = source < 0 ? blank_place() : homes.at(source);
      }
      band.depthwise.taps.push_back(static_cast<uint32_t>(at * channels_));
    }
  }
}

bool Bands::fit() const {
  const size_t window = (window_rows_ * row_floats() + most_filtered_ * channels_) * sizeof(float);
  return window <= l2_cache_bytes() * 3 / 4;
}

// One thread's window, and which band is in it.
class Bands::Worker {
 public:
  Worker(const Bands& bands, const Stages& stages, const Run& run)
      : bands_(bands),
        stages_(stages),
        run_(run),
        scratch_(bands.window_floats() + bands.most_filtered_ * bands.channels_),
        window_(scratch_.data()),
        filtered_(window_ + bands.window_floats()) {
    if (stages.expand == nullptr || !stages.expand->leaves_masked()) return;
    std::fill_n(window_ + bands.zero_place() * bands.channels_, bands.channels_, 0.0f);
    stages.expand->write_blank(window_ + bands.blank_place() * bands.channels_);
  }

  // The bands of all images are counted, one image after the other.
  void work(size_t number) {
    const size_t image = number / bands_.bands_.size();
    const size_t index = number % bands_.bands_.size();
    const Band& band = bands_.bands_[index];
    const size_t in_plane = bands_.chain_in_.positions();
    const size_t out_plane = bands_.out_.positions();
    const Conv& first = stages_.expand != nullptr ? *stages_.expand : *stages_.depthwise;
    const Conv& last = stages_.project != nullptr ? *stages_.project : *stages_.depthwise;
    const auto inputs = static_cast<size_t>(first.desc().in_channels);
    const auto outputs = static_cast<size_t>(last.desc().out_channels);
    const float* x = run_.x + image * in_plane * inputs;
    float* y = run_.y + image * out_plane * outputs;
    const float* residual =
        run_.residual == nullptr ? nullptr : run_.residual + image * out_plane * outputs;

    const float* filter_input = x;
    if (stages_.expand != nullptr) {
      const bool holds_last = index > 0 && number == next_;
      expand(x, inputs, band, holds_last ? &bands_.bands_[index - 1] : nullptr);
      filter_input = window_;
      next_ = number + 1;
    }
    const bool projects = stages_.project != nullptr;
    const bool streams =
        !projects && run_.images * out_plane * outputs * sizeof(float) > l2_cache_bytes();
    const GatherPlanes filter{filter_input,     bands_.channels_, nullptr, projects ? filtered_ : y,
                              bands_.channels_, streams};
    stages_.depthwise->gather_depthwise(band.depthwise, filter, bands_.pitch_);
    if (projects) {
      stages_.project->gather_panels(band.project,
                                     {filtered_, bands_.channels_, residual, y, outputs, true}, 0);
    }
  }

 private:
  // The band's rows into the window, which may hold the band before it.
  void expand(const float* x, size_t inputs, const Band& band, const Band* held) {
    if (held != nullptr) {
      std::memmove(window_, window_ + (band.first - held->first) * bands_.row_floats(),
                   (band.kept - band.first) * bands_.row_floats() * sizeof(float));
    } else {
      expand_rows(x, inputs, band, band.halo, band.first, band.kept);
    }
    expand_rows(x, inputs, band, band.fresh, band.kept, band.last);
  }

  void expand_rows(const float* x, size_t inputs, const Band& band, const Gather& gather,
                   size_t begin, size_t end) {
    stages_.expand->gather_panels(gather, {x, inputs, nullptr, window_, bands_.channels_, false},
                                  static_cast<size_t>(bands_.chain_in_.width));
    if (!band.depthwise.taps.empty()) return;  // none of them reads the padding
    const size_t left = bands_.pad_left_ * bands_.channels_;
    const size_t inside = static_cast<size_t>(bands_.in_.width) * bands_.channels_;
    for (size_t row = begin; row < end; ++row) {
      float* to = window_ + (row - band.first) * bands_.row_floats();
      if (row < bands_.pad_top_ ||
          row >= bands_.pad_top_ + static_cast<size_t>(bands_.in_.height)) {
        std::fill_n(to, bands_.row_floats(), 0.0f);
      } else {
        std::fill_n(to, left, 0.0f);
        std::fill(to + left + inside, to + bands_.row_floats(), 0.0f);
      }
    }
  }

  const Bands& bands_;
  const Stages& stages_;
  const Run& run_;
  ThreadScratch scratch_;
  float* window_;
  float* filtered_;
  size_t next_ = 0;  // number of the band that follows the one in the window
};

void Bands::run(const Stages& stages, const Run& run, const Parallel& parallel) const {
  if (stages.expand == nullptr || !stages.expand->reads_nchw()) return work(stages, run, parallel);
  const semisparse_conv_desc& d = stages.expand->desc();
  const Conv::Plane in{chain_in_.height - d.pads[0] - d.pads[2],
                       chain_in_.width - d.pads[1] - d.pads[3]};
  const ThreadScratch padded(run.images * chain_in_.positions() * stages.expand->in_channels());
  stages.expand->pad_input(run.x, static_cast<int64_t>(run.images), in, padded.data(), parallel);
  work(stages, {padded.data(), run.images, run.residual, run.y}, parallel);
}

// A thread that goes on with the next band has its first rows already. So the rows that two bands
// share are computed twice only where two threads meet.
void Bands::work(const Stages& stages, const Run& run, const Parallel& parallel) const {
  parallel.ranges(
      run.images * bands_.size(), 1, [&] { return Worker(*this, stages, run); },
      [&](Worker& worker, size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) worker.work(i);
      });
}

}  // namespace semisparse
