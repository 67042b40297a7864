// Arrays whose surroundings nobody may touch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "tests/check.h"

namespace semisparse::test {

// One end lies flush against a page that faults, which catches what no sanitizer sees, masked and
// hand-written loads among it; the rest of the pages holds canaries. The element before or after is
// never aligned by luck either: an array that ends flush begins wherever its size says.
template <typename T>
class Guarded {
 public:
  Guarded(size_t n, Random& random) : size_(n) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = n * sizeof(T);
    room_ = (bytes + page - 1) / page * page;
    mapped_ = room_ + 2 * page;
    base_ =
        static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(base_ != MAP_FAILED);
    begin_ = base_ + page;
    if (room_ != 0) CHECK(mprotect(begin_, room_, PROT_READ | PROT_WRITE) == 0);
    std::memset(begin_, kCanary, room_);
    data_ = begin_ + (random.chance(0.75) ? room_ - bytes : 0);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    for (const char* p = begin_; p < begin_ + room_; ++p) {
      const bool ours = p >= data_ && p < data_ + size_ * sizeof(T);
      if (!ours) CHECK(*p == kCanary);
    }
    munmap(base_, mapped_);
  }

  T* data() { return reinterpret_cast<T*>(data_); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data()[i]; }

 private:
  static constexpr char kCanary = 0x5a;

  size_t size_, room_, mapped_;
  char* base_;
  char* begin_;
  char* data_;
};

// With small integers over eight, or also NaN and infinities.
inline void fill(Guarded<float>& array, Random& random, bool finite) {
  for (size_t i = 0; i < array.size(); ++i) {
    array[i] = finite ? random.value() : random.any_value();
  }
}

inline void copy(Guarded<float>& from, Guarded<float>& to) {
  CHECK_EQUAL(from.size(), to.size());
  std::memcpy(to.data(), from.data(), from.size() * sizeof(float));
}

inline void check_same(Guarded<float>& a, Guarded<float>& b) {
  CHECK_EQUAL(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same(a[i], b[i])) {
      fail(__FILE__, __LINE__,
           "element " + std::to_string(i) + " of " + std::to_string(a.size()) + " is " +
               std::to_string(a[i]) + ", not " + std::to_string(b[i]));
    }
  }
}

}  // namespace semisparse::test
