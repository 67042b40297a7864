// A convolution, a depthwise and a pointwise one in a row, computed band by band.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/conv.h"
#include "core/gather.h"
#include "core/parallel.h"

namespace semisparse {

// The convolutions of a chain; expand or project may be null, not both. What expands is pointwise,
// or a stem: any convolution of one group that reads NCHW.
struct Stages {
  const Conv* expand;
  const Conv* depthwise;
  const Conv* project;

  // What the depthwise convolution reads where the chain reads `in`.
  Conv::Plane expanded(Conv::Plane in) const {
    return expand == nullptr ? in : expand->output_plane(in.height, in.width);
  }
};

// A chain on one plane, cut into bands of output rows. Of an expansion only the rows that a band
// reads are kept, padded, in a window that stays in the second-level cache; the next band moves
// those that it reads too to the window's start and adds its own. Of a masked expansion the window
// holds what is computed, each of it once, and the depthwise convolution's taps are listed. A
// stem's input, which is smaller than its output, is padded as a whole beforehand.
class Bands {
 public:
  // Whether the planes between the stages are too large for the cache, and a few rows are not.
  static bool suit(const Stages& stages, Conv::Plane in);

  Bands(const Stages& stages, Conv::Plane in);

  // Whether the bands fit the cache: masks may make far rows depend on one another.
  bool fit() const;

  struct Run {
    const float* x;
    size_t images;
    const float* residual;
    float* y;
  };
  void run(const Stages& stages, const Run& run, const Parallel& parallel) const;

 private:
  // Rows are those of the padded plane, and places in the window are counted from the band's first.
  struct Band {
    size_t first, kept, last;  // rows [first, kept) are the band's before as well
    Gather halo, fresh;        // of the expansion: those rows, and [kept, last)
    Gather depthwise;
    Gather project;
  };
  struct Reads;
  class Worker;

  void read_in_place(const semisparse_conv_desc& desc, Band& band) const;
  size_t row_floats() const { return pitch_ * channels_; }
  // Behind the rows of a window whose taps are listed: a row of zeros for those outside of the
  // plane, and one of what a blank position holds.
  size_t zero_place() const { return window_rows_ * pitch_; }
  size_t blank_place() const { return zero_place() + 1; }
  size_t window_floats() const { return (blank_place() + 1) * channels_; }
  template <typename F>
  void each_read(const Reads& reads, const Band& band, size_t begin, size_t end, const F& f) const;
  uint32_t expand_from(const semisparse_conv_desc& desc, int64_t source) const;
  Gather expansion(const Stages& stages, const Reads& reads, const Band& band, size_t begin,
                   size_t end) const;
  void list_taps(const Stages& stages, const Reads& reads, Band& band, const Band* next) const;
  void work(const Stages& stages, const Run& run, const Parallel& parallel) const;
  Band band_of(const Stages& stages, size_t begin, size_t end, Reads& reads) const;

  Conv::Plane chain_in_;  // with a stem's padding
  Conv::Plane in_, out_;  // of the depthwise convolution
  size_t pad_top_, pad_left_;
  size_t pitch_;              // positions from a row to the next
  size_t channels_;           // of the depthwise convolution
  size_t window_rows_ = 0;    // of any band
  size_t most_filtered_ = 0;  // depthwise positions of any band
  std::vector<size_t> taps_;  // of the depthwise convolution, pixels from its first
  std::vector<Band> bands_;
};

}  // namespace semisparse
