// How layers are divided into tiles and tasks: the numbers that more than one algorithm goes by.
#pragma once

#include <cstddef>

namespace semisparse {

constexpr size_t kTasksWanted = 8;   // at least, so that a few threads finish together
constexpr size_t kWidestPanel = 64;  // output channels of the widest kernel
constexpr size_t kLineFloats = 16;   // of a cache line

inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace semisparse
