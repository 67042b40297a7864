// What masked positions hold, and what else follows the linear part.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/conv_work.h"
#include "core/scratch.h"

namespace semisparse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

// As epilogue::spread, then the activation where that is no clamp.
void Conv::spread(const epilogue::Spread& spread) const {
  epilogue_->spread(spread);
  for (size_t i = 0; i < spread.count && activate_ != nullptr; ++i) {
    activate(spread.y + spread.entries[i].dest * spread.ldy, spread.n);
  }
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

// Rows [begin, end), one tile's, after its last kernel. Where masked positions copy a linear part
// that a residual of their own is added to, that part is in `parked`, `stride` floats a row, and
// all places are finished here.
void Conv::finish_rows(const Work& work, Rows& rows, size_t begin, size_t end, const float* parked,
                       size_t stride, size_t channel, size_t channels) const {
  const size_t count = end - begin;
  if (work.spreads) {
    const auto plane = static_cast<uint32_t>(positions_->height * positions_->width);
    const auto& copy_begin = positions_->copy_begin;
    size_t copies = 0;
    each_image(begin, end, [&](size_t, size_t from, size_t to) {
      copies += copy_begin[to] - copy_begin[from];
    });
    SmallArray<epilogue::Pair, 64> pairs(count + copies);
    epilogue::Pair* next = pairs.data();
    for (uint32_t i = 0; i < count; ++i) *next++ = {i, rows.dests()[i]};
    uint32_t i = 0;
    each_image(begin, end, [&](size_t image, size_t from, size_t to) {
      const uint32_t first = static_cast<uint32_t>(image) * plane;
      for (size_t row = from; row < to; ++row, ++i) {
        for (size_t at = copy_begin[row]; at < copy_begin[row + 1]; ++at) {
          *next++ = {i, first + positions_->copies[at].dest};
        }
      }
    });
    spread({pairs.data(), count + copies, parked, stride, work.residual + channel, work.y + channel,
            out_channels(), channels, lo_, hi_});
  } else if (activate_ != nullptr) {
    for (size_t i = 0; i < count; ++i) {
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
    copy_rows(positions_->copies.data() + first, positions_->copy_begin[to] - first,
              work.y + image * plane * out_channels() + channel, out_channels(), channels);
  });
}

// From finished rows of y to others.
void Conv::copy_rows(const epilogue::Pair* copies, size_t count, float* y, size_t ldy,
                     size_t channels) const {
  epilogue_->spread({copies, count, y, ldy, nullptr, y, ldy, channels, -kInfinity, kInfinity});
}

// A task's share of the positions whose linear part is zero.
void Conv::blank_share(const Work& work, size_t share, size_t shares, size_t channel,
                       size_t channels) const {
  if (!positions_ || positions_->blank.empty()) return;
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  const size_t per_image = positions_->blank.size();
  const size_t begin = work.images * per_image * share / shares;
  const size_t end = work.images * per_image * (share + 1) / shares;
  for (size_t at = begin; at < end;) {
    const size_t first = at % per_image;
    const size_t count = std::min(end - at, per_image - first);
    const size_t offset = at / per_image * plane * out_channels() + channel;
    blank_rows(positions_->blank.data() + first, count,
               work.residual == nullptr ? nullptr : work.residual + offset, work.y + offset,
               out_channels(), channel, channels);
    at += count;
  }
}

// Channels from `channel` on, which is where residual and y begin.
void Conv::blank_rows(const epilogue::Pair* blanks, size_t count, const float* residual, float* y,
                      size_t ldy, size_t channel, size_t channels) const {
  if (residual == nullptr) {
    epilogue_->spread({blanks, count, blank_row_.get() + channel, 0, nullptr, y, ldy, channels,
                       -kInfinity, kInfinity});
  } else {
    spread({blanks, count, bias_.get() + channel, 0, residual, y, ldy, channels, lo_, hi_});
  }
}

void Conv::complete_means(size_t images, const float* residual, float* y, const Parallel& parallel,
                          const std::function<void(float*)>& first) const {
  const size_t row = out_channels();
  const size_t plane = static_cast<size_t>(positions_->height * positions_->width) * row;
  // Where nothing else follows the linear parts, computed positions are ready after the first part.
  const bool in_place = residual == nullptr && desc_.activation == SEMISPARSE_IDENTITY;
  std::optional<ThreadScratch> scratch;
  if (!in_place) scratch.emplace(images * plane);
  float* linear = in_place ? y : scratch->data();
  first(linear);

  const auto& [lo, hi, activate] = means_finish_;
  const auto activate_rows = [&, act = activate](float* to, const auto* entries, size_t count) {
    for (size_t i = 0; i < count && act != nullptr; ++i) {
      act(to + entries[i].dest * row, row, desc_.activation_a);
    }
  };
  parallel(images * kTasksWanted, [&, low = lo, high = hi](size_t task) {
    const size_t offset = task / kTasksWanted * plane;
    const size_t share = task % kTasksWanted;
    const float* from = linear + offset;
    const float* added = residual == nullptr ? nullptr : residual + offset;
    float* to = y + offset;
    // The task's part of a list.
    const auto part = [share](const auto& list) {
      const size_t begin = list.size() * share / kTasksWanted;
      return std::pair(list.data() + begin, list.size() * (share + 1) / kTasksWanted - begin);
    };
    const auto spread_part = [&](const std::vector<epilogue::Pair>& list) {
      const auto [pairs, count] = part(list);
      epilogue_->spread({pairs, count, from, row, added, to, row, row, low, high});
      activate_rows(to, pairs, count);
    };
    if (!in_place) spread_part(means_->computed);
    spread_part(means_->copies);
    const auto [means, count] = part(means_->means);
    epilogue_->mean({means, count, from, row, added, to, row, row, low, high});
    activate_rows(to, means, count);
  });
}

void Conv::activate(float* y, size_t n) const {
  if (activate_ != nullptr) activate_(y, n, desc_.activation_a);
}

}  // namespace semisparse
