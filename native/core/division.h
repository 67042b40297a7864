// How layers are divided into tiles and tasks: the numbers that more than one algorithm goes by.
#pragma once

#include <cstddef>

namespace semisparse {

constexpr size_t kTasksWanted = 8;   // at least, so that a few threads finish together
constexpr size_t kWidestPanel = 64;  // output channels of the widest kernel
constexpr size_t kLineFloats = 16;   // of a cache line

inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

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

}  // namespace semisparse
