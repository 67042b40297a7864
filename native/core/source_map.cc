#include "core/source_map.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "core/error.h"

namespace semisparse {
namespace {

void check_plane(int64_t height, int64_t width) {
  if (height <= 0 || width <= 0 || height > std::numeric_limits<int32_t>::max() / width) {
    invalid("a plane of " + std::to_string(height) + " x " + std::to_string(width) +
            " positions has no mask; both sides must be positive and their product fit in 31 bits");
  }
}

}  // namespace

void source_map(const uint8_t* mask, int64_t height, int64_t width, semisparse_fill fill,
                int32_t* source) {
  check_plane(height, width);
  std::vector<int32_t> kept;
  for (int32_t p = 0; p < height * width; ++p) {
    if (mask[p] != 0) kept.push_back(p);
  }
  if (fill == SEMISPARSE_FILL_NEAREST && kept.empty()) {
    invalid("the mask of " + std::to_string(height) + " x " + std::to_string(width) +
            " computes no position, so fill 'nearest' has nothing to copy; use fill 'bias'");
  }
  for (int32_t p = 0; p < height * width; ++p) {
    if (mask[p] != 0) {
      source[p] = p;
      continue;
    }
    source[p] = -1;
    if (fill == SEMISPARSE_FILL_BIAS) continue;
    const int64_t y = p / width;
    const int64_t x = p % width;
    int64_t best = std::numeric_limits<int64_t>::max();
    const auto consider = [&](int32_t q) {
      const int64_t dy = q / width - y;
      const int64_t dx = q % width - x;
      const int64_t distance = dy * dy + dx * dx;
      if (distance < best || (distance == best && q < source[p])) {
        best = distance;
        source[p] = q;
      }
    };
    // Outwards from p in row-major order: once the rows alone are further away than the best found,
    // nothing nearer can follow.
    const auto after = std::lower_bound(kept.begin(), kept.end(), p);
    for (auto it = after; it != kept.end(); ++it) {
      const int64_t dy = *it / width - y;
      if (dy * dy > best) break;
      consider(*it);
    }
    for (auto it = after; it != kept.begin();) {
      --it;
      const int64_t dy = y - *it / width;
      if (dy * dy > best) break;
      consider(*it);
    }
  }
}

Positions::Positions(const int32_t* source, int64_t h, int64_t w) : height(h), width(w) {
  check_plane(h, w);
  const auto plane = static_cast<int32_t>(h * w);
  std::vector<uint32_t> index(static_cast<size_t>(plane));  // of a computed position in kept
  for (int32_t p = 0; p < plane; ++p) {
    const int32_t q = source[p];
    if (q < -1 || q >= plane || (q >= 0 && source[q] != q)) {
      invalid("the source map says " + std::to_string(q) + " at position " + std::to_string(p) +
              "; it must name a computed position of the " + std::to_string(h) + " x " +
              std::to_string(w) + " plane, one that names itself, or be -1");
    }
    const auto position = static_cast<uint32_t>(p);
    if (q == -1) {
      blank.push_back({0, position});
    } else if (q == p) {
      index[position] = static_cast<uint32_t>(kept.size());
      kept.push_back({position, static_cast<uint32_t>(p / w), static_cast<uint32_t>(p % w)});
    }
  }
  copy_begin.assign(kept.size() + 1, 0);
  for (int32_t p = 0; p < plane; ++p) {
    const int32_t q = source[p];
    if (q < 0 || q == p) continue;
    copies.push_back({static_cast<uint32_t>(q), static_cast<uint32_t>(p)});
    ++copy_begin[index[static_cast<size_t>(q)] + 1];
  }
  std::stable_sort(
      copies.begin(), copies.end(),
      [](const epilogue::Pair& a, const epilogue::Pair& b) { return a.source < b.source; });
  std::partial_sum(copy_begin.begin(), copy_begin.end(), copy_begin.begin());
}

void Positions::keep_read(const std::vector<uint8_t>& read) {
  std::vector<Place> places;
  std::vector<epilogue::Pair> pairs;
  std::vector<uint32_t> begin{0};
  for (size_t i = 0; i < kept.size(); ++i) {
    for (size_t j = copy_begin[i]; j < copy_begin[i + 1]; ++j) {
      if (read[copies[j].dest] != 0) pairs.push_back(copies[j]);
    }
    // One that is not read may still be what others copy.
    if (read[kept[i].position] == 0 && pairs.size() == begin.back()) continue;
    places.push_back(kept[i]);
    begin.push_back(static_cast<uint32_t>(pairs.size()));
  }
  kept = std::move(places);
  copies = std::move(pairs);
  copy_begin = std::move(begin);
  const auto unread = [&](const epilogue::Pair& pair) { return read[pair.dest] == 0; };
  blank.erase(std::remove_if(blank.begin(), blank.end(), unread), blank.end());
}

std::vector<int32_t> Positions::source_map() const {
  std::vector<int32_t> source(static_cast<size_t>(height * width), -1);
  for (const Place& place : kept) source[place.position] = static_cast<int32_t>(place.position);
  for (const epilogue::Pair& copy : copies) source[copy.dest] = static_cast<int32_t>(copy.source);
  return source;
}

}  // namespace semisparse
