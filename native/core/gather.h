// Positions of a convolution by list, for those who keep only parts of its planes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/dwconv/dwconv.h"
#include "kernels/epilogue/epilogue.h"

namespace semisparse {

// What each position reads, and where it goes.
struct Gather {
  std::vector<uint32_t> from, dest;     // computed: one entry each
  std::vector<dwconv::Window> windows;  // of a depthwise convolution; empty: all taps are inside
  std::vector<uint32_t> taps;           // or of each entry, where every tap reads, in floats from
                                        // the input; empty: see above
  std::vector<epilogue::Pair> copies;   // of what is there already, then from an entry's dest, in
                                        // the order of the entries
  std::vector<uint32_t> copy_begin;     // [entries + 1]: where in copies those of an entry start
  std::vector<epilogue::Pair> blank;    // places whose linear part is zero: row 0
};

// Where a list's places are: pixels of ldx floats are read, pixels of ldy floats are written.
struct GatherPlanes {
  const float* x;
  size_t ldx;
  const float* residual;  // as y, or null
  float* y;
  size_t ldy;
  bool fetch_y;  // y is not in the second-level cache, so its lines are fetched ahead
};

// Makes a Gather. What is added first with a given source is computed, what follows copies it.
class Gatherer {
 public:
  // What `place` holds before anything is computed.
  void add_present(int64_t source, uint32_t place);
  // source: a name of what is computed, or -1 for a blank place.
  void add(int64_t source, uint32_t from, uint32_t dest);
  Gather finish();

 private:
  Gather gather_;
  std::unordered_map<int64_t, uint32_t> present_;  // places by source
  std::unordered_map<int64_t, uint32_t> entries_;  // by source
  std::vector<epilogue::Pair> copies_;             // entry and dest
};

}  // namespace semisparse
