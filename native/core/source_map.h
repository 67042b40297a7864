// From a mask and a fill to a source map, and from a source map to the lists that a convolution
// runs on.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/epilogue/epilogue.h"
#include "semisparse.h"

namespace semisparse {

// See semisparse_source_map.
void source_map(const uint8_t* mask, int64_t height, int64_t width, semisparse_fill fill,
                int32_t* source);

// See semisparse_mean_sources.
void mean_sources(const uint8_t* mask, int64_t height, int64_t width, int32_t* sources,
                  float* weight);

// A source map as lists. Throws Error for a map that is none.
struct Positions {
  Positions(const int32_t* source, int64_t height, int64_t width);

  std::vector<int32_t> source_map() const;  // kInNoList for what is in none
  static constexpr int32_t kInNoList = -2;

  // Leaves positions [height * width] out that are not read; they are in no list then.
  void keep_read(const std::vector<uint8_t>& read);

  struct Place {
    uint32_t position, y, x;
  };

  int64_t height, width;
  std::vector<Place> kept;             // computed positions, ascending
  std::vector<epilogue::Pair> copies;  // masked positions and what they copy, by kept index
  std::vector<uint32_t>
      copy_begin;  // [kept + 1]: where in copies those of each kept position start
  std::vector<epilogue::Pair> blank;  // positions whose linear part is zero: row 0, ascending
};

// A map of two sources and the weight of the second as lists, all ascending by dest. Throws Error
// for a map that is none.
struct Means {
  Means(const int32_t* sources, const float* weight, int64_t height, int64_t width);

  // The positions that are computed; all others are in no list.
  Positions positions(int64_t height, int64_t width) const;

  std::vector<epilogue::Pair> computed;  // source and dest alike
  std::vector<epilogue::Pair> copies;    // both sources are the same
  std::vector<epilogue::Mean> means;     // all others
};

}  // namespace semisparse
