// One run of a convolution: what its files share with one another and with nobody else.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/conv.h"
#include "core/division.h"

namespace semisparse {

// One run, and its division into tasks.
struct Conv::Work {
  Geometry geometry;
  const float* weights;  // packed
  const float* residual;
  float* y;
  const uint32_t* tap_places;  // [rows][taps] of a depthwise convolution, or null
  // What the kernels add to the linear parts and make of them: nothing where masked positions copy
  // those and add residuals of their own. Then fill_rows finishes all.
  const float* added;
  Finish finish;
  size_t channels;  // of a tap
  size_t images, rows;
  bool streams;        // the output does not stay in the cache, so its lines are fetched ahead
  bool fetches_x;      // nor does the input, which is read once from one end to the other
  bool by_group;       // the panels are computed in groups; else all of them for each row
  size_t block_depth;  // of a group, what stays in the cache over all rows
  size_t tiles;        // of the rows; in a depthwise convolution every row is one
  size_t groups;
  size_t parts;  // of the rows: all groups of the first one, then all of the next one
  size_t unit;   // tiles that are never divided
  size_t grain;  // fewest units that are worth a thread

  size_t units() const { return tiles / unit * groups; }
  size_t first_row(size_t tile) const { return rows * tile / tiles; }

  // Tiles of one group in one part.
  struct Piece {
    size_t group, first, last;
  };
  // Those from `index` to at most `end`, of all groups' tiles in the order of the parts.
  Piece piece(size_t index, size_t end) const {
    const size_t part = ((index / groups + 1) * parts - 1) / tiles;
    const size_t first = tiles * part / parts;
    const size_t count = tiles * (part + 1) / parts - first;
    const size_t within = index - first * groups;
    const size_t from = within % count;
    return {within / count, first + from, first + std::min(count, from + end - index)};
  }
  size_t taps() const { return geometry.taps.size(); }
};

}  // namespace semisparse
