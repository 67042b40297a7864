// What the kernels of a convolution have in common: rows that they read through pointers, places
// that they write to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/guarded.h"

namespace semisparse::test {

// Taps of `reach` floats each, anywhere in the input; one of them ends where the input ends. Either
// m * taps pointers, or m pointers and the offset of every tap from them.
struct Rows {
  Rows(Guarded<float>& input, size_t m, size_t taps, size_t reach, Random& random) {
    const size_t last = input.size() - reach;
    if (random.chance(0.5)) {
      pointers.resize(m * taps);
      for (const float*& pointer : pointers) pointer = input.data() + random.size(0, last);
      pointers[random.size(0, pointers.size() - 1)] = input.data() + last;
      return;
    }
    const size_t origin = random.size(0, last);
    pointers.resize(m);
    for (const float*& pointer : pointers) pointer = input.data() + random.size(0, origin);
    pointers[random.size(0, m - 1)] = input.data() + origin;
    shared.resize(taps);
    for (std::ptrdiff_t& offset : shared) {
      offset = static_cast<std::ptrdiff_t>(random.size(0, last - origin));
    }
    shared[random.size(0, taps - 1)] = static_cast<std::ptrdiff_t>(last - origin);
  }

  const std::ptrdiff_t* offsets() const { return shared.empty() ? nullptr : shared.data(); }

  std::vector<const float*> pointers;
  std::vector<std::ptrdiff_t> shared;
};

// A place for each of m rows, all different, in any order over a plane with some to spare.
inline std::vector<uint32_t> destinations(size_t m, Random& random) {
  std::vector<uint32_t> places(2 * m + 3);
  std::iota(places.begin(), places.end(), 0u);
  for (size_t i = places.size() - 1; i > 0; --i) std::swap(places[i], places[random.size(0, i)]);
  return places;
}

}  // namespace semisparse::test
