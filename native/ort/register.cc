// The entry point that ONNX Runtime looks for.
#include <vector>

#include "core/isa.h"
#include "ort/chain_op.h"
#include "ort/conv_op.h"
#include "ort/host.h"
#include "ort/layer_norm_op.h"
#include "ort/ort_api.h"
#include "ort/pool_op.h"
#include "ort/squeeze_excite_op.h"
#include "semisparse.h"

namespace semisparse::ort {
namespace {

const OrtApi* api_in_use = nullptr;

// Sessions hold on to the operators for as long as the process lives, so they are never freed.
const std::vector<const OrtCustomOp*>& operators() {
  static const auto* all = [] {
    auto* list = new std::vector<const OrtCustomOp*>(conv_operators());
    for (const OrtCustomOp* op : chain_operators()) list->push_back(op);
    for (const OrtCustomOp* op : pool_operators()) list->push_back(op);
    for (const OrtCustomOp* op : layer_norm_operators()) list->push_back(op);
    for (const OrtCustomOp* op : squeeze_excite_operators()) list->push_back(op);
    return list;
  }();
  return *all;
}

}  // namespace

const OrtApi& registered_api() { return *api_in_use; }

}  // namespace semisparse::ort

extern "C" SEMISPARSE_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                       const OrtApiBase* base) {
  namespace ort = semisparse::ort;
  // Before 1.17 this is null, and without it not even an error can be reported.
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (api == nullptr) return nullptr;
  ort::api_in_use = api;
  return ort::guard(*api, "semisparse", [&] {
    semisparse::selected_isa();  // a forced instruction set that cannot run fails here, not later
    OrtCustomOpDomain* domain = nullptr;
    ort::ok(*api, ort::CreateCustomOpDomain(*api, "semisparse", &domain));
    for (const OrtCustomOp* op : ort::operators()) {
      ort::ok(*api, ort::CustomOpDomain_Add(*api, domain, op));
    }
    ort::ok(*api, ort::AddCustomOpDomain(*api, options, domain));
  });
}
