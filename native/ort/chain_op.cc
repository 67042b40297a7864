#include "ort/chain_op.h"

#include <algorithm>
#include <deque>
#include <string>

#include "core/chain.h"
#include "core/isa.h"
#include "ort/conv_inputs.h"
#include "ort/operator.h"
#include "ort/run_layer.h"

namespace semisparse::ort {
namespace {

struct FormName {
  semisparse_chain_form form;
  const char* name;
  std::vector<const char*> stages;  // as errors call them
  size_t depthwise;                 // which of them
  bool projects;
  bool stem;  // whether the first one is a stem, with a geometry of its own
};

const FormName kForms[] = {
    {SEMISPARSE_EXPAND_DEPTHWISE_PROJECT,
     "ExpandDepthwiseProject",
     {"expansion's ", "depthwise ", "projection's "},
     1,
     true,
     false},
    {SEMISPARSE_DEPTHWISE_PROJECT,
     "DepthwiseProject",
     {"depthwise ", "projection's "},
     0,
     true,
     false},
    {SEMISPARSE_EXPAND_DEPTHWISE,
     "ExpandDepthwise",
     {"expansion's ", "depthwise "},
     1,
     false,
     false},
    {SEMISPARSE_STEM_DEPTHWISE_PROJECT,
     "StemDepthwiseProject",
     {"stem's ", "depthwise ", "projection's "},
     1,
     true,
     true},
    {SEMISPARSE_STEM_DEPTHWISE, "StemDepthwise", {"stem's ", "depthwise "}, 1, false, true},
};

constexpr char kOfStem[] = "stem_";  // what the names of its attributes begin with

class ChainOp : public Operator<ChainOp> {
 public:
  struct Kernel {
    Chain chain;
  };

  ChainOp(const FormName& form, const FillName& fill, bool residual,
          const ActivationName& activation)
      : Operator(std::string(form.name) + fill.infix + (residual ? "Add" : "") + activation.suffix),
        form_(form),
        fill_(fill.fill),
        residual_(residual),
        activation_(activation.activation) {}

  size_t inputs() const { return first_input(form_.stages.size()) + (residual_ ? 1 : 0); }

  int input_type(size_t index) const {
    const bool constant = index >= first_input(0) && index < first_input(form_.stages.size());
    return constant ? conv_input_type(fill_, (index - first_input(0)) % conv_inputs(fill_))
                    : kFloat;
  }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    std::deque<ConvConstants> constants;
    std::vector<semisparse_chain_stage> stages;
    for (size_t i = 0; i < form_.stages.size(); ++i) {
      semisparse_conv_desc desc = plain_conv();
      if (i == form_.depthwise) {
        read_geometry(api, info, desc);
        desc.group = int_attribute(api, info, "group", 1);
      } else if (i == 0 && form_.stem) {
        read_geometry(api, info, desc, kOfStem);
        desc.input_layout = SEMISPARSE_NCHW;
      }
      if (i <= form_.depthwise) read_activation(api, info, activation_, desc);
      constants.emplace_back(api, info, first_input(i), fill_, desc, form_.stages[i]);
      stages.push_back(constants.back().argument());
    }
    return std::unique_ptr<Kernel>(new Kernel{{form_.form, stages.data(), selected_isa()}});
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    run_layer(kernel.chain, inputs(), residual_, api, context);
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    const InferredShape input = inferred_shape(api, context, kX);
    const Shape w = inferred_shape(api, context, first_input(form_.depthwise)).sizes;
    const Shape last = inferred_shape(api, context, first_input(form_.stages.size() - 1)).sizes;
    if (input.sizes.size() != 4 || w.size() != 4 || last.size() != 4) return {};
    Shape y{input.sizes[0], -1, -1, last[0]};
    int64_t plane[2] = {input.sizes[1], input.sizes[2]};
    if (form_.stem) {
      const Shape stem = inferred_shape(api, context, first_input(0)).sizes;
      if (stem.size() != 4) return {};
      infer_plane(api, context, &input.sizes[2], stem, plane, kOfStem);
    }
    infer_plane(api, context, plane, w, &y[1]);
    return {y, input.batch};
  }

 private:
  static constexpr size_t kX = 0;

  // Of a stage's constants.
  size_t first_input(size_t stage) const { return 1 + stage * conv_inputs(fill_); }

  const FormName& form_;
  Fill fill_;
  bool residual_;
  semisparse_activation activation_;
};

}  // namespace

std::vector<const OrtCustomOp*> chain_operators() {
  std::vector<const OrtCustomOp*> all;
  for (const FormName& form : kForms) {
    for (const FillName& fill : kFills) {
      for (const bool residual : {false, true}) {
        for (const ActivationName& activation : kActivations) {
          if (residual && !form.projects) continue;
          if (is_gate(activation.activation)) continue;
          all.push_back(new ChainOp(form, fill, residual, activation));
        }
      }
    }
  }
  return all;
}

}  // namespace semisparse::ort
