// Memory for floats that kernels read and write: 64-byte aligned, contents left as they are.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace semisparse {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

using Buffer = std::unique_ptr<float[], Free>;

inline Buffer make_buffer(size_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes == 0 ? 64 : bytes);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(static_cast<float*>(p));
}

}  // namespace semisparse
