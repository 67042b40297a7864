// A convolution, packed once and run many times.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/gather.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/rows.h"
#include "core/select.h"
#include "core/source_map.h"
#include "core/winograd.h"
#include "semisparse.h"

namespace semisparse {

// Whether kernel, strides and group are 1 and there is no padding.
bool is_pointwise(const semisparse_conv_desc& desc);

class Conv {
 public:
  // What becomes of the caller's weights. Where they stay in place for as long as the convolution,
  // it keeps only what its runs use, in their own order, and makes that when they first do.
  enum class Weights { kGone, kStay };

  // Arguments as in semisparse_conv_create. Throws Error.
  Conv(const semisparse_conv_desc& desc, const float* weights, const float* bias,
       const int32_t* source, const float* weight, int64_t height, int64_t width,
       const IsaInfo& isa, Weights after = Weights::kGone);

  Conv(const semisparse_chain_stage& stage, const IsaInfo& isa, Weights after = Weights::kGone)
      : Conv(*stage.desc, stage.weights, stage.bias, stage.source, stage.weight, stage.height,
             stage.width, isa, after) {}

  const char* kernel_name() const { return kernel_name_.c_str(); }
  const semisparse_conv_desc& desc() const { return desc_; }
  size_t in_channels() const { return static_cast<size_t>(desc_.in_channels); }
  size_t out_channels() const { return static_cast<size_t>(desc_.out_channels); }
  bool is_depthwise() const { return dwconv_ != nullptr; }
  bool reads_nchw() const { return desc_.input_layout == SEMISPARSE_NCHW; }
  const Positions* positions() const { return positions_ ? &*positions_ : nullptr; }

  struct Plane {
    int64_t height, width;
    size_t positions() const { return static_cast<size_t>(height * width); }
  };
  // Throws Error when it would be empty or is not the source map's.
  Plane output_plane(int64_t height, int64_t width) const;

  // Calls f(row, column) for what each tap of each computed position reads, in their order and
  // outside of the input too.
  void each_tap(Plane out, const std::function<void(int64_t, int64_t)>& f) const;

  // Which positions of an input plane its computed positions read.
  std::vector<uint8_t> reads(Plane in) const;

  // From now on leaves alone what is not read of its output plane; one that may run by Winograd's
  // algorithm has made its tiles and goes on as before. Not for convolutions with means.
  void keep_read(Plane plane, const std::vector<uint8_t>& read);

  // From now on a run writes computed positions only, for a reader that knows what the masked ones
  // copy.
  void leave_masked() { fills_ = false; }
  bool leaves_masked() const { return !fills_; }
  // What such a position holds that copies none: to[out_channels].
  void write_blank(float* to) const;

  // Whether a run may multiply the input's channels by a gate of each image.
  bool takes_gate() const;
  // gate: [batch, in_channels], or null. taps: [computed positions][taps], where a depthwise
  // convolution of one image reads, in floats from x; or null.
  void run(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
           float* y, const Parallel& parallel, const float* gate = nullptr,
           const uint32_t* taps = nullptr) const;

  // Whether masked positions are means of two computed ones. Those can be in tiles of different
  // tasks, so a run has two parts: linear parts of what is computed, then all outputs of these.
  bool has_means() const { return means_.has_value(); }
  // The first part, and all of a run where there are no means.
  void compute(const float* x, int64_t batch, int64_t height, int64_t width, const float* residual,
               float* y, const Parallel& parallel, const float* gate = nullptr,
               const uint32_t* taps = nullptr) const;
  // Both, where what `first` writes to the plane that it is given is the result of the first part.
  void complete_means(size_t images, const float* residual, float* y, const Parallel& parallel,
                      const std::function<void(float*)>& first) const;

  // An input plane with its padding.
  Plane padded_plane(Plane in) const;
  // All planes with their padding, in NHWC.
  void pad_input(const float* x, int64_t batch, Plane in, float* padded,
                 const Parallel& parallel) const;

  // Computes some positions, by list, on the calling thread: those of a convolution of one group on
  // a padded input, or those of a depthwise one. `pitch` pixels are from one row of the input to
  // the next.
  void gather_panels(const Gather& gather, const GatherPlanes& planes, size_t pitch) const;
  void gather_depthwise(const Gather& gather, const GatherPlanes& planes, size_t pitch) const;

 private:
  // A panel of output channels of one group.
  struct Panel {
    const igemm::Kernel* kernel;
    size_t first;    // output channel
    size_t count;    // channels that exist, <= kernel->nr
    size_t inputs;   // first input channel of the group
    size_t weights;  // offset into weights_
  };
  // Panels whose rows are found once for all of them: together no wider than the widest kernel of
  // any instruction set. Finding them anew for each panel of 16 channels took a tenth of a 3x3
  // layer.
  struct PanelGroup {
    size_t begin, end;  // in panels_
    size_t channel, channels;
  };
  struct Work;
  // Of the linear parts: a clamp, and, where the activation is none, that too.
  struct Finish {
    float lo, hi;
    epilogue::Activate activate;
  };
  static const Finish kLinear;  // lets everything through

  static Finish finish_of(const semisparse_conv_desc& desc, const epilogue::Kernel& kernel);
  void divide_channels(Isa isa);
  void pack_panels(const float* weights) const;  // unless they have been
  void pack_depthwise(const float* weights, Isa isa);
  void prepare_winograd(Isa isa);
  const Winograd* fastest_winograd(size_t images, Plane out) const;
  bool runs_along_rows() const;
  // Taps of a filter row, and the channels of each: one with all of it where inputs are padded
  // rows.
  int64_t tap_columns() const { return runs_along_rows() ? 1 : desc_.kernel[1]; }
  size_t tap_channels() const {
    return static_cast<size_t>(desc_.in_channels / desc_.group * desc_.kernel[1] / tap_columns());
  }
  bool repeats_inputs() const {
    return dwconv_ != nullptr && desc_.in_channels != desc_.out_channels;
  }
  bool copies() const { return fills_ && positions_ && !positions_->copies.empty(); }
  size_t tiles_per_call() const;
  void repeat_inputs(const float* x, size_t pixels, float* repeated,
                     const Parallel& parallel) const;
  void run_winograd(const Winograd& winograd, const Work& work, const Parallel& parallel) const;
  void finish_winograd(const Work& work, const Winograd::Done& done) const;
  void recompute(const Work& work, const Winograd::Done& done) const;
  void gate_weights(const float* gate, float* gated, const Parallel& parallel) const;
  void gate_inputs(const float* x, size_t pixels, const float* gate, float* gated,
                   const Parallel& parallel) const;
  void divide(Work& work) const;
  void igemm_range(const Work& work, size_t first_tile, size_t last_tile) const;
  igemm::Tile tile_of(const Work& work, Rows& rows, size_t row, size_t m) const;
  void set_panel(igemm::Tile& tile, const Work& work, const Panel& panel) const;
  void igemm_tiles(const Work& work, size_t begin, size_t end, size_t first_panel,
                   size_t last_panel) const;
  size_t panel_groups() const;
  PanelGroup panel_group(size_t index) const;
  void igemm_group(const Work& work, size_t begin, size_t end, const PanelGroup& group) const;
  void dwconv_rows(const Work& work, size_t first_tile, size_t last_tile) const;
  void spread(const epilogue::Spread& spread) const;
  void blank_rows(const epilogue::Pair* blanks, size_t count, const float* residual, float* y,
                  size_t ldy, size_t channel, size_t channels) const;
  template <typename DestOf>
  void fill(const epilogue::Pair* copies, size_t count, size_t begin, size_t end,
            const DestOf& dest_of, const float* residual, float* y, size_t ldy,
            size_t channels) const;
  void fill_rows(const Work& work, size_t begin, size_t end, size_t channel, size_t channels) const;
  void copy_rows(const epilogue::Pair* copies, size_t count, float* y, size_t ldy,
                 size_t channels) const;
  void blank_share(const Work& work, size_t first_tile, size_t last_tile, size_t channel,
                   size_t channels) const;
  void blank(const Work& work, size_t begin, size_t end, size_t channel, size_t channels) const;
  void gather_tiles(const Gather& gather, const GatherPlanes& planes, size_t pitch, size_t begin,
                    size_t end) const;
  dwconv::Strip strip_of(const Finish& finish) const;
  void gather_fill(const Gather& gather, const GatherPlanes& planes, size_t begin,
                   size_t end) const;
  void gather_blanks(const Gather& gather, const GatherPlanes& planes) const;
  void activate_rows(const Finish& finish, const uint32_t* dests, size_t count, float* y,
                     size_t ldy, size_t n) const;
  template <typename Entry>
  void activate_rows(const Finish& finish, const Entry* entries, size_t count, float* y, size_t ldy,
                     size_t n) const;

  semisparse_conv_desc desc_;
  std::optional<Positions> positions_;  // none: dense
  bool fills_ = true;                   // masked positions
  std::optional<Means> means_;
  const float* staying_ = nullptr;  // the caller's weights where they stay
  mutable std::once_flag packed_;
  mutable Buffer weights_;  // packed, once a run needs them
  Buffer bias_;
  Buffer zeros_;      // what a tap outside the plane reads
  Buffer blank_row_;  // activation(bias), what a blank position holds where there is no residual
  std::vector<Panel> panels_;               // empty for a depthwise convolution
  size_t packed_floats_ = 0;                // of all panels
  const dwconv::Kernel* dwconv_ = nullptr;  // null for any other
  size_t mr_ = 0;                           // rows per tile that every panel's kernel takes
  std::vector<std::unique_ptr<Winograd>> winograds_;  // what may be faster than the panels alone
  std::string kernel_name_;
  const epilogue::Kernel* epilogue_;
  Finish finish_;
  Finish means_finish_;  // where there are means, and the above is kLinear
};

}  // namespace semisparse
