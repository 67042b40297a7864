#include "ort/conv_op.h"

#include <algorithm>
#include <string>

#include "core/conv.h"
#include "core/isa.h"
#include "ort/conv_inputs.h"
#include "ort/operator.h"
#include "ort/run_layer.h"

namespace semisparse::ort {
namespace {

// How a convolution reads its input.
struct ReadName {
  const char* name;
  semisparse_layout layout;
  bool gated;
};
constexpr ReadName kReads[] = {{"Conv", SEMISPARSE_NHWC, false},
                               {"ConvNchw", SEMISPARSE_NCHW, false},
                               {"ConvGated", SEMISPARSE_NHWC, true}};

class ConvOp : public Operator<ConvOp> {
 public:
  struct Kernel {
    Conv conv;
  };

  ConvOp(const ReadName& read, const FillName& fill, bool residual,
         const ActivationName& activation)
      : Operator(std::string(read.name) + fill.infix + (residual ? "Add" : "") + activation.suffix),
        layout_(read.layout),
        gated_(read.gated),
        fill_(fill.fill),
        residual_(residual),
        activation_(activation.activation) {}

  size_t inputs() const { return gate_input() + (gated_ ? 1 : 0) + (residual_ ? 1 : 0); }

  int input_type(size_t index) const {
    const bool constant = index >= kFirst && index < kFirst + conv_inputs(fill_);
    return constant ? conv_input_type(fill_, index - kFirst) : kFloat;
  }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    semisparse_conv_desc desc = plain_conv();
    desc.input_layout = layout_;
    read_geometry(api, info, desc);
    desc.group = int_attribute(api, info, "group", 1);
    read_activation(api, info, activation_, desc);
    const ConvConstants constants(api, info, kFirst, fill_, desc, "");
    // ONNX Runtime keeps a constant in one place for as long as the session.
    return std::unique_ptr<Kernel>(
        new Kernel{{constants.argument(), selected_isa(), Conv::Weights::kStay}});
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    const float* gate = gated_ ? read_gate(kernel.conv, api, context) : nullptr;
    run_layer(kernel.conv, inputs(), residual_, api, context, gate);
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    const InferredShape input = inferred_shape(api, context, kX);
    const Shape w = inferred_shape(api, context, kFirst).sizes;
    if (input.sizes.size() != 4 || w.size() != 4) return {};
    Shape y{input.sizes[0], -1, -1, w[0]};
    if (fill_ == Fill::kNone) {
      infer_plane(api, context, &input.sizes[layout_ == SEMISPARSE_NCHW ? 2 : 1], w, &y[1]);
    } else {
      const Shape map = inferred_shape(api, context, kFirst + 2).sizes;
      if (map.size() >= 2) std::copy(map.end() - 2, map.end(), &y[1]);
    }
    return {y, input.batch};
  }

 private:
  static constexpr size_t kX = 0;
  static constexpr size_t kFirst = 1;  // of the constants

  size_t gate_input() const { return kFirst + conv_inputs(fill_); }

  const float* read_gate(const Conv& conv, const OrtApi& api, OrtKernelContext* context) const {
    const Shape x = input(api, context, kX).shape;
    const Tensor gate = input(api, context, gate_input());
    const Shape needed{x.empty() ? 0 : x[0], 1, 1, static_cast<int64_t>(conv.in_channels())};
    if (gate.shape != needed) {
      invalid("the gate has shape " + text(gate.shape) + " and the input " + text(x) +
              "; the gate must have " + text(needed));
    }
    return gate.floats();
  }

  semisparse_layout layout_;
  bool gated_;
  Fill fill_;
  bool residual_;
  semisparse_activation activation_;
};

}  // namespace

std::vector<const OrtCustomOp*> conv_operators() {
  std::vector<const OrtCustomOp*> all;
  for (const ReadName& read : kReads) {
    for (const FillName& fill : kFills) {
      for (const bool residual : {false, true}) {
        for (const ActivationName& activation : kActivations) {
          all.push_back(new ConvOp(read, fill, residual, activation));
        }
      }
    }
  }
  return all;
}

}  // namespace semisparse::ort
