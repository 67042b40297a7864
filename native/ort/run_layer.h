// One run of a node that holds a convolution, or a chain of them.
#pragma once

#include <cstddef>
#include <string>

#include "core/conv.h"
#include "ort/host.h"

namespace semisparse::ort {

// The layer on the first of the node's inputs, into its output. A residual is the last input; a
// gate, which only single convolutions have, is the caller's.
template <typename Layer, typename... Gate>
void run_layer(const Layer& layer, size_t inputs, bool residual, const OrtApi& api,
               OrtKernelContext* context, Gate... gate) {
  const Tensor x = input(api, context, 0);
  const std::string channels = std::to_string(layer.in_channels());
  const size_t rows = layer.reads_nchw() ? 2 : 1;
  if (x.shape.size() != 4 ||
      x.shape[layer.reads_nchw() ? 1 : 3] != static_cast<int64_t>(layer.in_channels())) {
    invalid("the input has shape " + text(x.shape) + "; it must be " +
            (layer.reads_nchw() ? "[N, " + channels + ", H, W]" : "[N, H, W, " + channels + "]"));
  }
  const int64_t height = x.shape[rows];
  const int64_t width = x.shape[rows + 1];
  const Conv::Plane plane = layer.output_plane(height, width);
  const Shape shape{x.shape[0], plane.height, plane.width,
                    static_cast<int64_t>(layer.out_channels())};
  const float* added = nullptr;
  if (residual) {
    const Tensor r = input(api, context, inputs - 1);
    if (r.shape != shape) {
      invalid("the residual has shape " + text(r.shape) + " but the output has " + text(shape) +
              "; they must be equal");
    }
    added = r.floats();
  }
  float* y = output(api, context, shape);
  Pool pool{&api, context};
  layer.run(x.floats(), x.shape[0], height, width, added, y, Parallel(parallel_for, &pool),
            gate...);
}

}  // namespace semisparse::ort
