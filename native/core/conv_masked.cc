// What masked positions hold, and what else follows the linear part.
#include <algorithm>
#include <cstring>

#include "core/conv_work.h"

namespace semisparse {

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

// Rows [begin, end), one tile's, after its last kernel. Where masked positions copy a linear part
// that a residual of their own is added to, that part is in `parked`, `stride` floats a row, and
// all places are finished here.
void Conv::finish_rows(const Work& work, Rows& rows, size_t begin, size_t end, const float* parked,
                       size_t stride, size_t channel, size_t channels) const {
  if (work.spreads) {
    for (size_t i = 0; i < end - begin; ++i) {
      finish_row(work, parked + i * stride, rows.dests()[i], channel, channels);
    }
    finish_copies(work, begin, end, parked, stride, channel, channels);
  } else if (activate_ != nullptr) {
    for (size_t i = 0; i < end - begin; ++i) {
      activate(work.y + rows.dests()[i] * out_channels() + channel, channels);
    }
  }
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
