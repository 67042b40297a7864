#include "ort/squeeze_excite_op.h"

#include <string>

#include "core/isa.h"
#include "core/squeeze_excite.h"
#include "ort/conv_inputs.h"
#include "ort/operator.h"
#include "ort/run_layer.h"

namespace semisparse::ort {
namespace {

// What the first layer may end with: an activation without parameters.
constexpr bool is_squeezed(semisparse_activation activation) {
  return activation == SEMISPARSE_RELU || activation == SEMISPARSE_SILU ||
         activation == SEMISPARSE_HARD_SWISH || activation == SEMISPARSE_GELU;
}

class SqueezeExciteOp : public Operator<SqueezeExciteOp> {
 public:
  struct Kernel {
    SqueezeExcite layer;
  };

  SqueezeExciteOp(bool scales, const ActivationName& squeeze, const ActivationName& excite)
      : Operator(std::string("SqueezeExcite") + (scales ? "Scale" : "") + squeeze.suffix +
                 excite.suffix),
        scales_(scales),
        squeeze_(squeeze.activation),
        excite_(excite.activation) {}

  size_t inputs() const { return kExcite + conv_inputs(Fill::kNone); }
  int input_type(size_t) const { return kFloat; }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    const ConvConstants squeeze = stage(api, info, kSqueeze, squeeze_, "first layer's ");
    const ConvConstants excite = stage(api, info, kExcite, excite_, "second layer's ");
    return std::unique_ptr<Kernel>(new Kernel{
        {squeeze.argument(), excite.argument(), scales_, selected_isa(), Conv::Weights::kStay}});
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    run_layer(kernel.layer, inputs(), false, api, context);
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    InferredShape y = inferred_shape(api, context, kX);
    if (y.sizes.size() != 4) return {};
    if (!scales_) y.sizes[1] = y.sizes[2] = 1;
    return y;
  }

 private:
  static constexpr size_t kX = 0;
  static constexpr size_t kSqueeze = 1;
  static constexpr size_t kExcite = kSqueeze + conv_inputs(Fill::kNone);

  static ConvConstants stage(const OrtApi& api, const OrtKernelInfo* info, size_t first,
                             semisparse_activation activation, const char* name) {
    semisparse_conv_desc desc = plain_conv();
    desc.activation = activation;
    return ConvConstants(api, info, first, Fill::kNone, desc, name);
  }

  bool scales_;
  semisparse_activation squeeze_, excite_;
};

}  // namespace

std::vector<const OrtCustomOp*> squeeze_excite_operators() {
  std::vector<const OrtCustomOp*> all;
  for (const bool scales : {false, true}) {
    for (const ActivationName& squeeze : kActivations) {
      for (const ActivationName& excite : kActivations) {
        if (is_squeezed(squeeze.activation) && is_gate(excite.activation)) {
          all.push_back(new SqueezeExciteOp(scales, squeeze, excite));
        }
      }
    }
  }
  return all;
}

}  // namespace semisparse::ort
