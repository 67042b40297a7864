#include "ort/layer_norm_op.h"

#include <functional>
#include <numeric>
#include <string>

#include "core/isa.h"
#include "core/layer_norm.h"
#include "ort/operator.h"

namespace semisparse::ort {
namespace {

class LayerNormOp : public Operator<LayerNormOp> {
 public:
  struct Kernel {
    LayerNorm norm;
    int64_t channels;
    Shape mask;  // empty without one
  };

  explicit LayerNormOp(bool masked)
      : Operator(masked ? "LayerNormMasked" : "LayerNorm"), masked_(masked) {}

  size_t inputs() const { return masked_ ? 4 : 3; }
  int input_type(size_t index) const { return index == kMask ? kUint8 : kFloat; }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    const Tensor scale = constant(api, info, kScale, "scale");
    const Tensor shift = constant(api, info, kShift, "shift");
    if (scale.shape.size() != 1 || shift.shape != scale.shape) {
      invalid("the scale has shape " + text(scale.shape) + " and the shift " + text(shift.shape) +
              "; both must be [C]");
    }
    const auto channels = scale.shape[0];
    const float epsilon = float_attribute(api, info, "epsilon", 1e-5f);
    const uint8_t* mask = nullptr;
    Shape plane;
    if (masked_) {
      const Tensor given = constant(api, info, kMask, "mask");
      plane = given.shape;
      if (plane.size() != 2) {
        invalid("the mask has shape " + text(plane) + "; it must be [H, W]");
      }
      mask = static_cast<const uint8_t*>(given.data);
    }
    const size_t positions = plane.empty() ? 0 : static_cast<size_t>(plane[0] * plane[1]);
    return std::unique_ptr<Kernel>(
        new Kernel{{static_cast<size_t>(channels), scale.floats(), shift.floats(), epsilon, mask,
                    positions, selected_isa()},
                   channels,
                   plane});
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    const Tensor x = input(api, context, kX);
    const Shape& shape = x.shape;
    const bool fits = !shape.empty() && shape.back() == kernel.channels &&
                      (!masked_ || (shape.size() == 4 && shape[1] == kernel.mask[0] &&
                                    shape[2] == kernel.mask[1]));
    if (!fits) {
      invalid("the input has shape " + text(shape) + " for a scale of shape " +
              text({kernel.channels}) +
              (masked_ ? " and a mask of shape " + text(kernel.mask) + "; it must be [N, H, W, C]"
                       : "; its last axis must be C"));
    }
    const int64_t rows =
        std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<>());
    float* y = output(api, context, shape);
    Pool pool{&api, context};
    kernel.norm.run(x.floats(), static_cast<size_t>(rows), y, Parallel(parallel_for, &pool));
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    return inferred_shape(api, context, kX);
  }

 private:
  static constexpr size_t kX = 0;
  static constexpr size_t kScale = 1;
  static constexpr size_t kShift = 2;
  static constexpr size_t kMask = 3;

  bool masked_;
};

}  // namespace

std::vector<const OrtCustomOp*> layer_norm_operators() {
  return {new LayerNormOp(false), new LayerNormOp(true)};
}

}  // namespace semisparse::ort
