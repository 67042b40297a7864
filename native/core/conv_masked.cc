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
  activate_rows(finish_, spread.entries, spread.count, spread.y, spread.ldy, spread.n);
}

void Conv::activate_rows(const Finish& finish, const uint32_t* dests, size_t count, float* y,
                         size_t ldy, size_t n) const {
  if (finish.activate == nullptr || count == 0) return;
  finish.activate({dests, 1, count, y, ldy, n}, desc_.activation_a);
}

template <typename Entry>
void Conv::activate_rows(const Finish& finish, const Entry* entries, size_t count, float* y,
                         size_t ldy, size_t n) const {
  if (finish.activate == nullptr || count == 0) return;
  constexpr size_t kStep = sizeof(Entry) / sizeof(uint32_t);
  finish.activate({&entries->dest, kStep, count, y, ldy, n}, desc_.activation_a);
}

// Rows of y, those at dest_of(i) for i in [begin, end), to the `count` places that copy them.
// Without a residual a masked position holds exactly what the one that it copies holds, so finished
// rows are copied. With one the rows are linear parts, and every place adds a residual of its own;
// last of all they become results themselves.
template <typename DestOf>
void Conv::fill(const epilogue::Pair* copies, size_t count, size_t begin, size_t end,
                const DestOf& dest_of, const float* residual, float* y, size_t ldy,
                size_t channels) const {
  if (residual == nullptr) return copy_rows(copies, count, y, ldy, channels);
  SmallArray<epilogue::Pair, 256> pairs(count + end - begin);
  epilogue::Pair* next = std::copy_n(copies, count, pairs.data());
  for (size_t i = begin; i < end; ++i) *next++ = {dest_of(i), dest_of(i)};
  spread({pairs.data(), count + end - begin, y, ldy, residual, y, ldy, channels, finish_.lo,
          finish_.hi});
}

// The masked positions that copy rows [begin, end). Doing this in the kernels, row by row, cost the
// layers with few channels their whole gain: how many copies a row has cannot be predicted.
void Conv::fill_rows(const Work& work, size_t begin, size_t end, size_t channel,
                     size_t channels) const {
  if (!copies()) return;
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  const size_t per_image = positions_->kept.size();
  const auto& copy_begin = positions_->copy_begin;
  for (size_t row = begin; row < end;) {
    const size_t image = row / per_image;
    const size_t from = row - image * per_image;
    const size_t to = std::min(end - image * per_image, per_image);
    const size_t offset = image * plane * out_channels() + channel;
    fill(
        positions_->copies.data() + copy_begin[from], copy_begin[to] - copy_begin[from], from, to,
        [&](size_t i) { return positions_->kept[i].position; },
        work.residual == nullptr ? nullptr : work.residual + offset, work.y + offset,
        out_channels(), channels);
    row += to - from;
  }
}

// The same of the entries [begin, end) of a list.
void Conv::gather_fill(const Gather& gather, const GatherPlanes& planes, size_t begin,
                       size_t end) const {
  if (gather.copies.empty()) return;
  const size_t first = gather.copy_begin[begin];
  fill(
      gather.copies.data() + first, gather.copy_begin[end] - first, begin, end,
      [&](size_t i) { return gather.dest[i]; }, planes.residual, planes.y, planes.ldy,
      out_channels());
}

// From finished rows of y to others.
void Conv::copy_rows(const epilogue::Pair* copies, size_t count, float* y, size_t ldy,
                     size_t channels) const {
  epilogue_->spread({copies, count, y, ldy, nullptr, y, ldy, channels, -kInfinity, kInfinity});
}

// The share of some tiles in the positions whose linear part is zero.
void Conv::blank_share(const Work& work, size_t first_tile, size_t last_tile, size_t channel,
                       size_t channels) const {
  if (!positions_ || !fills_) return;
  const size_t blanks = work.images * positions_->blank.size();
  blank(work, blanks * first_tile / work.tiles, blanks * last_tile / work.tiles, channel, channels);
}

// Those positions of all images.
void Conv::blank(const Work& work, size_t begin, size_t end, size_t channel,
                 size_t channels) const {
  const auto plane = static_cast<size_t>(positions_->height * positions_->width);
  const size_t per_image = positions_->blank.size();
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

void Conv::write_blank(float* to) const {
  if (blank_row_) std::copy_n(blank_row_.get(), out_channels(), to);
}

// Channels from `channel` on, which is where residual and y begin.
void Conv::blank_rows(const epilogue::Pair* blanks, size_t count, const float* residual, float* y,
                      size_t ldy, size_t channel, size_t channels) const {
  if (residual == nullptr) {
    epilogue_->spread({blanks, count, blank_row_.get() + channel, 0, nullptr, y, ldy, channels,
                       -kInfinity, kInfinity});
  } else {
    spread({blanks, count, bias_.get() + channel, 0, residual, y, ldy, channels, finish_.lo,
            finish_.hi});
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

  const Finish& finish = means_finish_;
  parallel(images * kTasksWanted, [&](size_t task) {
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
      epilogue_->spread({pairs, count, from, row, added, to, row, row, finish.lo, finish.hi});
      activate_rows(finish, pairs, count, to, row, row);
    };
    if (!in_place) spread_part(means_->computed);
    spread_part(means_->copies);
    const auto [means, count] = part(means_->means);
    epilogue_->mean({means, count, from, row, added, to, row, row, finish.lo, finish.hi});
    activate_rows(finish, means, count, to, row, row);
  });
}

}  // namespace semisparse
