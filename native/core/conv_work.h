// One run of a convolution: what its files share with one another and with nobody else.
#pragma once

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
  // What the kernels add to the linear parts and make of them: nothing where masked positions copy
  // those and add residuals of their own. Then fill_rows finishes all.
  const float* added;
  Finish finish;
  size_t channels;  // of a tap
  size_t images, rows;
  bool streams;        // the output does not stay in the cache, so its lines are fetched ahead
  bool fetches_x;      // nor does the input, which is read once from one end to the other
  bool by_group;       // a task is the rows of one group of panels; else all panels of its rows
  size_t block_depth;  // of a group, what stays in the cache over all rows
  size_t tiles;        // of the rows
  size_t row_tasks, tasks;

  // Of the rows of a task, which are whole tiles.
  size_t first_row(size_t row_task) const { return rows * (tiles * row_task / row_tasks) / tiles; }
  size_t taps() const { return geometry.taps.size(); }
};

}  // namespace semisparse
