// 3x3 convolutions with stride 1, dense or masked, by Winograd's F(4x4, 3x3).
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/rows.h"
#include "core/scratch.h"
#include "core/source_map.h"
#include "kernels/igemm/igemm.h"
#include "kernels/winograd/winograd.h"
#include "semisparse.h"

namespace semisparse {

class Winograd {
 public:
  // Output channels that one indirect-GEMM kernel computes.
  struct Panel {
    const igemm::Kernel* kernel;
    size_t first, count;   // output channels
    const float* weights;  // [9][in_channels][nr], must outlive the Winograd
  };

  // Whether such a convolution can be computed so.
  static bool suits(const semisparse_conv_desc& desc);

  // positions: null for a dense convolution.
  Winograd(const semisparse_conv_desc& desc, std::vector<Panel> panels, const Positions* positions,
           Isa isa);

  // Whether it is faster than the direct convolution for so many images with an output plane of
  // this size.
  bool pays(size_t images, int64_t out_height, int64_t out_width) const;

  struct Run {
    const Geometry& geometry;
    size_t images;
    const float* bias;  // readable to the end of the last panel
    const float* residual;
    float* y;
    float lo, hi;
  };

  // One tile's outputs of one panel, which have just been written.
  struct Done {
    size_t image;
    size_t y, x;  // of the tile's first output
    size_t panel;
    const winograd::Entry* entries;
    size_t count;
    bool finite;  // else they are not what a direct convolution gives
  };
  using OnDone = std::function<void(const Done&)>;

  // Computes all outputs but the blank ones. `done` is called from the tasks.
  void run(const Run& run, const Parallel& parallel, const OnDone& done) const;

 private:
  struct Tile {
    uint32_t y, x;        // of its first output
    uint32_t begin, end;  // its part of entries_
  };
  struct Place {
    size_t image, index;  // index: among the image's tiles
    size_t y, x;          // of its first output
  };
  struct Tiling;
  struct Block;

  void place_tiles(const Positions& positions);
  void transform_weights() const;
  Place place(const Tiling& tiling, size_t tile) const;
  void transform_input(const Run& run, const Tiling& tiling, size_t tile, float* v) const;
  void multiply(const Block& block, float* m) const;
  void transform_output(const Run& run, const Tiling& tiling, const Block& block, const float* m,
                        const OnDone& done) const;

  size_t in_channels_, out_channels_;
  std::vector<Panel> panels_;
  std::vector<size_t> weight_begin_;  // [panels + 1], in weights_
  size_t widest_ = 0;                 // nr of any panel
  bool masked_;
  size_t kept_;              // computed positions of a masked plane
  std::vector<Tile> tiles_;  // of a masked plane: those with any computed position
  std::vector<winograd::Entry> entries_;
  const winograd::Kernel* kernel_;
  size_t v_stride_;  // floats from one tile's transformed inputs to the next's
  // Four times the packed weights, so made only once a run is seen to be faster with them.
  mutable std::once_flag once_;
  mutable Buffer weights_;  // [panel][36][in_channels][nr]
  mutable ScratchSlot scratch_;
};

}  // namespace semisparse
