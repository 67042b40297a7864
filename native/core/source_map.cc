#include "core/source_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"

namespace semisparse {
namespace {

void check_plane(int64_t height, int64_t width) {
  if (height <= 0 || width <= 0 || height > std::numeric_limits<int32_t>::max() / width) {
    invalid("a plane of " + std::to_string(height) + " x " + std::to_string(width) +
            " positions has no mask; both sides must be positive and their product fit in 31 bits");
  }
}

std::vector<int32_t> computed_of(const uint8_t* mask, int64_t height, int64_t width,
                                 const char* fill) {
  std::vector<int32_t> kept;
  for (int32_t p = 0; p < height * width; ++p) {
    if (mask[p] != 0) kept.push_back(p);
  }
  if (kept.empty()) {
    invalid("the mask of " + std::to_string(height) + " x " + std::to_string(width) +
            " computes no position, so fill '" + fill +
            "' has nothing to take values from; use fill 'bias'");
  }
  return kept;
}

struct Neighbour {
  int64_t distance;  // squared
  int32_t position;

  bool operator<(const Neighbour& other) const {
    return std::pair(distance, position) < std::pair(other.distance, other.position);
  }
};

// The two nearest of `kept`, of equal ones those of the lowest index; twice the same where there is
// one only.
std::array<Neighbour, 2> nearest_two(const std::vector<int32_t>& kept, int32_t p, int64_t width) {
  constexpr Neighbour kNone{std::numeric_limits<int64_t>::max(), 0};
  std::array<Neighbour, 2> best{kNone, kNone};
  const int64_t y = p / width;
  const auto consider = [&](int32_t q) {
    const int64_t dy = q / width - y;
    const int64_t dx = q % width - p % width;
    const Neighbour found{dy * dy + dx * dx, q};
    if (found < best[0]) {
      best = {found, best[0]};
    } else if (found < best[1]) {
      best[1] = found;
    }
  };
  // Outwards from p in row-major order: once the rows alone are further away than the second best
  // found, nothing nearer can follow.
  const auto after = std::lower_bound(kept.begin(), kept.end(), p);
  const auto beyond = [&](int32_t q) {
    const int64_t dy = q / width - y;
    return dy * dy > best[1].distance;
  };
  for (auto it = after; it != kept.end() && !beyond(*it); ++it) consider(*it);
  for (auto it = after; it != kept.begin() && !beyond(*(it - 1));) consider(*--it);
  if (kept.size() == 1) best[1] = best[0];
  return best;
}

}  // namespace

void source_map(const uint8_t* mask, int64_t height, int64_t width, semisparse_fill fill,
                int32_t* source) {
  check_plane(height, width);
  std::vector<int32_t> kept;
  if (fill == SEMISPARSE_FILL_NEAREST) kept = computed_of(mask, height, width, "nearest");
  for (int32_t p = 0; p < height * width; ++p) {
    if (mask[p] != 0) {
      source[p] = p;
    } else {
      source[p] = fill == SEMISPARSE_FILL_BIAS ? -1 : nearest_two(kept, p, width)[0].position;
    }
  }
}

void mean_sources(const uint8_t* mask, int64_t height, int64_t width, int32_t* sources,
                  float* weight) {
  check_plane(height, width);
  const std::vector<int32_t> kept = computed_of(mask, height, width, "mean");
  const int64_t plane = height * width;
  for (int32_t p = 0; p < plane; ++p) {
    sources[p] = sources[plane + p] = p;
    weight[p] = 0;
    if (mask[p] != 0) continue;
    const auto [first, second] = nearest_two(kept, p, width);
    sources[p] = first.position;
    sources[plane + p] = second.position;
    if (first.position == second.position) continue;
    const double near = std::sqrt(static_cast<double>(first.distance));
    weight[p] = static_cast<float>(near / (near + std::sqrt(static_cast<double>(second.distance))));
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
  std::vector<int32_t> source(static_cast<size_t>(height * width), kInNoList);
  for (const epilogue::Pair& pair : blank) source[pair.dest] = -1;
  for (const Place& place : kept) source[place.position] = static_cast<int32_t>(place.position);
  for (const epilogue::Pair& copy : copies) source[copy.dest] = static_cast<int32_t>(copy.source);
  return source;
}

Means::Means(const int32_t* sources, const float* weight, int64_t height, int64_t width) {
  check_plane(height, width);
  const auto plane = static_cast<int32_t>(height * width);
  const int32_t* second = sources + plane;
  const auto is_computed = [&](int32_t p) {
    return p >= 0 && p < plane && sources[p] == p && second[p] == p && weight[p] == 0;
  };
  for (int32_t p = 0; p < plane; ++p) {
    const auto position = static_cast<uint32_t>(p);
    if (is_computed(p)) {
      computed.push_back({position, position});
      continue;
    }
    if (!is_computed(sources[p]) || !is_computed(second[p]) ||
        !(weight[p] >= 0 && weight[p] <= 1)) {
      invalid("the sources of position " + std::to_string(p) + " are " +
              std::to_string(sources[p]) + " and " + std::to_string(second[p]) +
              ", the second with weight " + std::to_string(weight[p]) +
              "; both must be computed positions of the " + std::to_string(height) + " x " +
              std::to_string(width) +
              " plane, which have themselves twice and weight 0, and the weight within [0, 1]");
    }
    const auto first = static_cast<uint32_t>(sources[p]);
    if (sources[p] == second[p]) {
      copies.push_back({first, position});
    } else {
      means.push_back({first, static_cast<uint32_t>(second[p]), position, weight[p]});
    }
  }
}

Positions Means::positions(int64_t height, int64_t width) const {
  std::vector<int32_t> source(static_cast<size_t>(height * width), -1);
  for (const epilogue::Pair& pair : computed) {
    source[pair.dest] = static_cast<int32_t>(pair.dest);
  }
  Positions positions(source.data(), height, width);
  positions.blank.clear();
  return positions;
}

}  // namespace semisparse
