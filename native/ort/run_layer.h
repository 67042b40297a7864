// One run of a node that holds a convolution, or a chain of them.
#pragma once

#include <cstddef>
#include <string>

#include "core/conv.h"
#include "ort/host.h"

namespace semisparse::ort {

// The layer on the first of the node's inputs, into its output. A residual is the last input.
template <typename Layer>
void run_layer(const Layer& layer, size_t inputs, bool residual, const OrtApi& api,
               OrtKernelContext* context) {
  const Tensor x = input(api, context, 0);
  const auto channels = static_cast<int64_t>(layer.in_channels());
  if (x.shape.size() != 4 || x.shape[3] != channels) {
    invalid("the input has shape " + text(x.shape) + "; it must be [N, H, W, " +
            std::to_string(channels) + "]");
  }
  const Conv::Plane plane = layer.output_plane(x.shape[1], x.shape[2]);
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
  layer.run(x.floats(), x.shape[0], x.shape[1], x.shape[2], added, y,
            Parallel(parallel_for, &pool));
}

}  // namespace semisparse::ort
