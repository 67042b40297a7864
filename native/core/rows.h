// Where output rows (computed positions of all images, in order) read from and write to.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/source_map.h"
#include "kernels/dwconv/dwconv.h"

namespace semisparse {

// One run of a convolution.
struct Geometry {
  const float* x;                      // the input, or its padded copy
  int64_t height, width, in_channels;  // of x
  int64_t out_height, out_width;
  int64_t stride_y, stride_x;
  int64_t pad_top, pad_left;
  std::array<int64_t, 2> kernel, dilation;
  std::vector<std::array<int64_t, 2>> taps;  // row and column of each tap from the first
  std::vector<std::ptrdiff_t> offsets;       // the same in floats
  const float* zeros;                        // [in_channels], what a tap outside the plane reads
  const Positions* positions;                // null: dense
  size_t rows_per_image;
};

// An array on the stack as long as it is short.
template <typename T, size_t kInline>
class SmallArray {
 public:
  explicit SmallArray(size_t n) {
    if (n > kInline) {
      heap_.resize(n);
      data_ = heap_.data();
    }
  }
  T* data() { return data_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  std::array<T, kInline> inline_;
  std::vector<T> heap_;
  T* data_ = inline_.data();
};

// Of taps at first, first + step and so on, those in [0, size).
struct TapRange {
  uint32_t begin, end;
};
TapRange taps_inside(int64_t first, int64_t step, int64_t taps, int64_t size);

// The rows of one tile at a time, as the kernels' contracts want them.
class Rows {
 public:
  Rows(const Geometry& geometry, size_t most_rows);

  // Rows [first, first + m): one pointer per row, and every tap lies offsets() from it; or, where a
  // tap of some row lies outside the plane, offsets() is null and pointers() are [taps][m].
  void fill(size_t first, size_t m);

  // Rows from `first` on: one pointer per row, to where its first tap would be if it were inside,
  // and windows(), or null where all taps of all rows are. At most `most`; where they are to be
  // alike in that, as many as are. Returns how many.
  size_t fill_windows(size_t first, size_t most, bool alike);

  const float* const* pointers() { return pointers_.data(); }
  const std::ptrdiff_t* offsets() const { return offsets_; }
  const dwconv::Window* windows() { return windowed_ ? windows_.data() : nullptr; }
  const uint32_t* dests() { return dests_.data(); }  // [m], output positions

 private:
  bool locate(size_t first, size_t m);
  void fill_inside(size_t first, size_t m);
  void spread(size_t m);

  const Geometry& geometry_;
  SmallArray<const float*, 512> pointers_;
  SmallArray<const float*, 64> origins_;
  SmallArray<std::array<int64_t, 2>, 64> corners_;  // row and column of the first tap
  SmallArray<dwconv::Window, 64> windows_;
  SmallArray<uint32_t, 64> dests_;
  const std::ptrdiff_t* offsets_ = nullptr;
  bool windowed_ = false;
  const bool inside_;               // no tap of any position lies outside the plane
  const bool in_place_;             // and every position's first tap is the input at its own place
  size_t whole_begin_, whole_end_;  // columns of outputs none of whose taps is beside the plane
};

}  // namespace semisparse
