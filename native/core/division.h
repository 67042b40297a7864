// How layers are divided into tiles and tasks: the numbers that more than one algorithm goes by.
#pragma once

#include <cstddef>

namespace semisparse {

constexpr size_t kTasksWanted = 8;   // at least, so that a few threads finish together
constexpr size_t kWidestPanel = 64;  // output channels of the widest kernel
constexpr size_t kLineFloats = 16;   // of a cache line
constexpr size_t kWriteAhead = 16;   // positions that depthwise strips fetch for writing

inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

// Fewest rows of so many numbers that are worth a thread, where they are copied, multiplied, added
// up or normalised: some microseconds.
inline size_t grain_of(size_t floats) {
  constexpr size_t kGrainFloats = size_t{16} << 10;
  return ceil_div(kGrainFloats, floats < 1 ? 1 : floats);
}

// Rows cut into tiles of up to mr, as equal as can be, and those into calls of a kernel.
class Calls {
 public:
  Calls(size_t rows, size_t mr, size_t tiles_per_call)
      : rows_(rows), tiles_(ceil_div(rows, mr)), calls_(ceil_div(tiles_, tiles_per_call)) {}
  size_t size() const { return calls_; }
  size_t tiles() const { return tiles_; }
  size_t first_tile(size_t call) const { return tiles_ * call / calls_; }
  size_t first_row(size_t call) const { return rows_ * first_tile(call) / tiles_; }

 private:
  size_t rows_, tiles_, calls_;
};

// The inputs of a call's next one, fetched a line every four channels while the call computes panel
// after panel. They lie behind its last row where a layer has one tap, and mostly so where
// positions are masked. From 256 channels to 64 at 56x56 that is worth 20% (EPYC, Zen 3, AVX2): six
// rows of a kilobyte each, in turns, are no stream that the processor would notice. Where the
// inputs are in the second-level cache, as in chains, it costs thin layers 5%.
class NextInputs {
 public:
  NextInputs(const float* behind, size_t rows, size_t channels, size_t mr)
      : behind_(behind),
        lines_(rows * channels / kLineFloats),
        per_panel_(ceil_div(rows, mr) * (channels / 4)) {}

  // The share of the panel that is computed as the `index`th.
  const float* first(size_t index) const { return behind_ + index * per_panel_ * kLineFloats; }
  size_t lines(size_t index) const { return index * per_panel_ < lines_ ? 1 : 0; }

 private:
  const float* behind_;
  size_t lines_, per_panel_;
};

}  // namespace semisparse
