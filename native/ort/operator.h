// What every operator of the library has in common: an OrtCustomOp with its table filled.
#pragma once

#include <memory>
#include <string>

#include "core/error.h"
#include "ort/host.h"
#include "ort/ort_api.h"

namespace semisparse::ort {

// Op derives from Operator<Op> and gives
//     struct Kernel;                                             what a node keeps
//     int input_type(size_t) const; size_t inputs() const;
//     std::unique_ptr<Kernel> create(const OrtApi&, const OrtKernelInfo*) const;
//     void compute(const Kernel&, const OrtApi&, OrtKernelContext*) const;
//     InferredShape infer(const OrtApi&, const OrtShapeInferContext*) const;
template <typename Op>
class Operator : public OrtCustomOp {
 public:
  explicit Operator(std::string name) : OrtCustomOp{}, name_(std::move(name)) {
    version = kApiVersion;
    OrtCustomOp::GetName = [](const OrtCustomOp* op) { return self(op).name_.c_str(); };
    OrtCustomOp::GetExecutionProviderType = [](const OrtCustomOp*) -> const char* {
      return nullptr;  // the CPU
    };
    OrtCustomOp::GetInputType = [](const OrtCustomOp* op, size_t index) {
      return self(op).input_type(index);
    };
    OrtCustomOp::GetInputTypeCount = [](const OrtCustomOp* op) { return self(op).inputs(); };
    OrtCustomOp::GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat; };
    OrtCustomOp::GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
    OrtCustomOp::GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return kRequired; };
    OrtCustomOp::GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return kRequired; };
    OrtCustomOp::GetInputMemoryType = [](const OrtCustomOp*, size_t) { return kMemoryCpu; };
    OrtCustomOp::GetStartVersion = [](const OrtCustomOp*) { return 1; };
    OrtCustomOp::GetEndVersion = [](const OrtCustomOp*) { return 1; };
    OrtCustomOp::CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api,
                                     const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
      return guard(*api, "semisparse." + self(op).name_, [&] {
        auto state = std::make_unique<State>(State{&self(op), api, nullptr});
        state->kernel = self(op).create(*api, info);
        *kernel = state.release();
      });
    };
    OrtCustomOp::KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const State& state = *static_cast<const State*>(kernel);
      return guard(*state.api, "semisparse." + state.op->name_,
                   [&] { state.op->compute(*state.kernel, *state.api, context); });
    };
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp* op,
                                         OrtShapeInferContext* context) -> OrtStatus* {
      const OrtApi& api = registered_api();
      return guard(api, "semisparse." + self(op).name_,
                   [&] { set_output_shape(api, context, self(op).infer(api, context)); });
    };
    OrtCustomOp::KernelDestroy = [](void* kernel) { delete static_cast<State*>(kernel); };
  }

 protected:
  static const Op& self(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

  std::string name_;

 private:
  struct State {
    const Op* op;
    const OrtApi* api;
    std::unique_ptr<typename Op::Kernel> kernel;
  };
};

}  // namespace semisparse::ort
