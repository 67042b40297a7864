// 3x3 convolutions with stride 1, dense or masked, by Winograd's algorithm with tiles of one size.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/rows.h"
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
    size_t first, count;  // output channels
    const float* packed;  // [9][in_channels][nr]; null where the unpacked weights are given
  };

  // The sizes of tiles by which such a convolution can be computed; empty where it cannot.
  // $SEMISPARSE_WINOGRAD allows only one of them and makes it free of cost, or none (0).
  static std::vector<size_t> tile_sizes(const semisparse_conv_desc& desc);

  // weights: [out_channels][in_channels][3][3] or null; these or the packed ones must outlive the
  // Winograd. positions: null for a dense convolution.
  Winograd(const semisparse_conv_desc& desc, const winograd::Kernel& kernel,
           std::vector<Panel> panels, const float* weights, const Positions* positions);

  const char* kernel_name() const { return kernel_->name; }

  // Time for so many images with an output plane of this size, in multiply-adds for each pair of
  // channels; and that of the direct convolution.
  double cost(size_t images, int64_t out_height, int64_t out_width) const;
  static double direct_cost(const semisparse_conv_desc& desc, size_t positions);

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
    size_t side;  // of the tile, which may reach past the plane
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
  const winograd::Kernel* kernel_;
  size_t outputs_;   // a side of a tile of outputs
  size_t products_;  // matrix multiplications
  bool forced_;      // by the environment
  std::vector<Panel> panels_;
  const float* unpacked_;
  std::vector<size_t> weight_begin_;  // [panels + 1], in weights_
  size_t widest_ = 0;                 // nr of any panel
  bool masked_;
  std::vector<Tile> tiles_;  // of a masked plane: those with any computed position
  std::vector<winograd::Entry> entries_;
  size_t v_stride_;  // floats from one tile's transformed inputs to the next's
  // Larger than the packed weights, so made only once a run is seen to be faster with them.
  mutable std::once_flag once_;
  mutable Buffer weights_;  // [panel][products][in_channels][nr]
};

}  // namespace semisparse
