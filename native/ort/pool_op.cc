#include "ort/pool_op.h"

#include <string>

#include "core/isa.h"
#include "core/pool.h"
#include "ort/operator.h"

namespace semisparse::ort {
namespace {

class PoolOp : public Operator<PoolOp> {
 public:
  struct Kernel {
    semisparse_pool_desc desc;
    const IsaInfo* isa;
  };

  PoolOp(const char* name, semisparse_pool_kind kind, bool global)
      : Operator(name), kind_(kind), global_(global) {}

  size_t inputs() const { return 1; }
  int input_type(size_t) const { return kFloat; }

  std::unique_ptr<Kernel> create(const OrtApi& api, const OrtKernelInfo* info) const {
    auto kernel = std::make_unique<Kernel>(Kernel{geometry(), &selected_isa()});
    semisparse_pool_desc& desc = kernel->desc;
    if (!global_) {
      ints_attribute(api, info, "kernel_shape", desc.kernel, 2);
      ints_attribute(api, info, "strides", desc.strides, 2);
      ints_attribute(api, info, "pads", desc.pads, 4);
      ints_attribute(api, info, "dilations", desc.dilations, 2);
      desc.ceil_mode = static_cast<int>(int_attribute(api, info, "ceil_mode", 0));
      desc.count_include_pad = static_cast<int>(int_attribute(api, info, "count_include_pad", 0));
    }
    return kernel;
  }

  void compute(const Kernel& kernel, const OrtApi& api, OrtKernelContext* context) const {
    const Tensor x = input(api, context, 0);
    if (x.shape.size() != 4) {
      invalid("the input has shape " + text(x.shape) + "; it must be [N, H, W, C]");
    }
    semisparse_pool_desc desc = kernel.desc;
    if (global_) {
      desc.kernel[0] = x.shape[1];
      desc.kernel[1] = x.shape[2];
    }
    int64_t height = 0;
    int64_t width = 0;
    pool_output_size(desc, x.shape[1], x.shape[2], &height, &width);
    float* y = output(api, context, {x.shape[0], height, width, x.shape[3]});
    Pool pool{&api, context};
    run_pool(desc, x.floats(), x.shape[0], x.shape[1], x.shape[2], x.shape[3], y, *kernel.isa,
             Parallel(parallel_for, &pool));
  }

  InferredShape infer(const OrtApi& api, const OrtShapeInferContext* context) const {
    const InferredShape input = inferred_shape(api, context, 0);
    const Shape& x = input.sizes;
    if (x.size() != 4) return {};
    Shape y{x[0], -1, -1, x[3]};
    if (global_) {
      y[1] = y[2] = 1;
    } else if (x[1] > 0 && x[2] > 0) {
      semisparse_pool_desc desc = geometry();
      inferred_ints(api, context, "kernel_shape", desc.kernel, 2);
      inferred_ints(api, context, "strides", desc.strides, 2);
      inferred_ints(api, context, "pads", desc.pads, 4);
      inferred_ints(api, context, "dilations", desc.dilations, 2);
      desc.ceil_mode = static_cast<int>(inferred_int(api, context, "ceil_mode", 0));
      pool_output_size(desc, x[1], x[2], &y[1], &y[2]);
    }
    return {y, input.batch};
  }

 private:
  semisparse_pool_desc geometry() const {
    semisparse_pool_desc desc{};
    desc.kind = kind_;
    for (int i = 0; i < 2; ++i) desc.kernel[i] = desc.strides[i] = desc.dilations[i] = 1;
    return desc;
  }

  semisparse_pool_kind kind_;
  bool global_;
};

}  // namespace

std::vector<const OrtCustomOp*> pool_operators() {
  return {new PoolOp("MaxPool", SEMISPARSE_MAX_POOL, false),
          new PoolOp("AveragePool", SEMISPARSE_AVERAGE_POOL, false),
          new PoolOp("GlobalAveragePool", SEMISPARSE_AVERAGE_POOL, true),
          new PoolOp("GlobalL2Pool", SEMISPARSE_L2_POOL, true)};
}

}  // namespace semisparse::ort
