#include "ort/conv_op.h"

#include <limits>
#include <string>

#include "core/conv.h"
#include "core/isa.h"
#include "core/source_map.h"
#include "ort/operator.h"

namespace semisparse::ort {
namespace {

enum class Fill { kNone, kBias, kNearest };

struct ActivationName {
  semisparse_activation activation;
  const char* suffix;
};
constexpr ActivationName kActivations[] = {
    {SEMISPARSE_IDENTITY, ""},       {SEMISPARSE_RELU, "Relu"},
    {SEMISPARSE_CLIP, "Clip"},       {SEMISPARSE_LEAKY_RELU, "LeakyRelu"},
    {SEMISPARSE_SILU, "Silu"},       {SEMISPARSE_HARD_SWISH, "HardSwish"},
    {SEMISPARSE_SIGMOID, "Sigmoid"},
};

struct FillName {
  Fill fill;
  const char* infix;
};
constexpr FillName kFills[] = {
    {Fill::kNone, ""}, {Fill::kBias, "FillBias"}, {Fill::kNearest, "FillNearest"}};

class ConvOp : public Operator<ConvOp> {
 public:
  struct Kernel {
    Conv conv;
  };

  ConvOp(const FillName& fill, bool residual, const ActivationName& activation)
      : Operator(std::string("Conv") + fill.infix + (residual ? "Add" : "") + activation.suffix),
        fill_(fill.fill),
        residual_(residual),
        activation_(activation.activation) {}

  size_t inputs() const { return 3 + (fill_ != Fill::kNone ? 1 : 0) + (residual_ ? 1 : 0); }

  int input_type(size_t index) const {
    if (index != kMap || fill_ == Fill::kNone) return kFloat;
    return fill_ == Fill::kBias ? kUint8 : kInt32;
  }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    const Tensor weights = constant(api, info, kWeights, "weights");
    const Tensor bias = constant(api, info, kBias, "bias");
    if (weights.shape.size() != 4) {
      invalid("weights of shape " + text(weights.shape) + " are not [C_out, C_in / group, kh, kw]");
    }
    if (bias.shape != Shape{weights.shape[0]}) {
      invalid("the bias has shape " + text(bias.shape) + "; weights of shape " +
              text(weights.shape) + " need [" + std::to_string(weights.shape[0]) + "]");
    }
    semisparse_conv_desc desc = geometry();
    desc.group = int_attribute(api, info, "group", 1);
    ints_attribute(api, info, "strides", desc.strides, 2);
    ints_attribute(api, info, "pads", desc.pads, 4);
    ints_attribute(api, info, "dilations", desc.dilations, 2);
    set_sizes(desc, weights.shape);
    desc.activation = activation_;
    if (activation_ == SEMISPARSE_LEAKY_RELU) {
      desc.activation_a = float_attribute(api, info, "alpha", 0.01f);
    } else if (activation_ == SEMISPARSE_CLIP) {
      desc.activation_a = float_attribute(api, info, "min", 0);
      desc.activation_b = float_attribute(api, info, "max", 6);
    }

    int64_t height = 0;
    int64_t width = 0;
    std::vector<int32_t> source;
    if (fill_ != Fill::kNone) {
      const Tensor map = constant(api, info, kMap, fill_ == Fill::kBias ? "mask" : "source map");
      if (map.shape.size() != 2) {
        invalid("a mask of shape " + text(map.shape) + " is not [H_out, W_out]");
      }
      height = map.shape[0];
      width = map.shape[1];
      source.resize(static_cast<size_t>(height * width));
      if (fill_ == Fill::kBias) {
        source_map(static_cast<const uint8_t*>(map.data), height, width, SEMISPARSE_FILL_BIAS,
                   source.data());
      } else {
        source.assign(static_cast<const int32_t*>(map.data),
                      static_cast<const int32_t*>(map.data) + source.size());
      }
    }
    const auto* bias_values = static_cast<const float*>(bias.data);
    // ONNX Runtime keeps a constant in one place for as long as the session.
    const auto* weight_values = static_cast<const float*>(weights.data);
    return std::unique_ptr<Kernel>(new Kernel{
        {desc, weight_values, bias_values, fill_ == Fill::kNone ? nullptr : source.data(), height,
         width, selected_isa(), Conv::Weights::kStay}});
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    const Tensor x = input(api, context, kX);
    const semisparse_conv_desc& desc = kernel.conv.desc();
    if (x.shape.size() != 4 || x.shape[3] != desc.in_channels) {
      invalid("the input has shape " + text(x.shape) + "; it must be [N, H, W, " +
              std::to_string(desc.in_channels) + "]");
    }
    const Conv::Plane plane = kernel.conv.output_plane(x.shape[1], x.shape[2]);
    const Shape shape{x.shape[0], plane.height, plane.width, desc.out_channels};
    const float* residual = nullptr;
    if (residual_) {
      const Tensor r = input(api, context, inputs() - 1);
      if (r.shape != shape) {
        invalid("the residual has shape " + text(r.shape) + " but the output has " + text(shape) +
                "; they must be equal");
      }
      residual = r.floats();
    }
    float* y = output(api, context, shape);
    Pool pool{&api, context};
    kernel.conv.run(x.floats(), x.shape[0], x.shape[1], x.shape[2], residual, y,
                    Parallel(parallel_for, &pool));
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    const InferredShape input = inferred_shape(api, context, kX);
    const Shape& x = input.sizes;
    const Shape w = inferred_shape(api, context, kWeights).sizes;
    if (x.size() != 4 || w.size() != 4) return {};
    Shape y{x[0], -1, -1, w[0]};
    if (fill_ != Fill::kNone) {
      const Shape map = inferred_shape(api, context, kMap).sizes;
      if (map.size() == 2) {
        y[1] = map[0];
        y[2] = map[1];
      }
      return {y, input.batch};
    }
    semisparse_conv_desc desc = geometry();
    inferred_ints(api, context, "strides", desc.strides, 2);
    inferred_ints(api, context, "pads", desc.pads, 4);
    inferred_ints(api, context, "dilations", desc.dilations, 2);
    for (size_t i = 0; i < 2; ++i) {
      const int64_t reach = (w[2 + i] - 1) * desc.dilations[i] + 1;
      const int64_t room = x[1 + i] + desc.pads[i] + desc.pads[i + 2] - reach;
      if (x[1 + i] > 0 && w[2 + i] > 0 && desc.strides[i] > 0 && room >= 0) {
        y[1 + i] = room / desc.strides[i] + 1;
      }
    }
    return {y, input.batch};
  }

 private:
  static constexpr size_t kX = 0;
  static constexpr size_t kWeights = 1;
  static constexpr size_t kBias = 2;
  static constexpr size_t kMap = 3;

  static semisparse_conv_desc geometry() {
    semisparse_conv_desc desc{};
    desc.strides[0] = desc.strides[1] = desc.dilations[0] = desc.dilations[1] = 1;
    return desc;
  }

  static void set_sizes(semisparse_conv_desc& desc, const Shape& weights) {
    desc.out_channels = weights[0];
    desc.in_channels = weights[1] * desc.group;
    desc.kernel[0] = weights[2];
    desc.kernel[1] = weights[3];
  }

  Fill fill_;
  bool residual_;
  semisparse_activation activation_;
};

}  // namespace

std::vector<const OrtCustomOp*> conv_operators() {
  std::vector<const OrtCustomOp*> all;
  for (const FillName& fill : kFills) {
    for (const bool residual : {false, true}) {
      for (const ActivationName& activation : kActivations) {
        all.push_back(new ConvOp(fill, residual, activation));
      }
    }
  }
  return all;
}

}  // namespace semisparse::ort
