#include "ort/host.h"

#include <algorithm>

namespace semisparse::ort {

std::string text(const Shape& shape) {
  std::string all = "[";
  for (const int64_t size : shape) {
    if (all.size() > 1) all += ", ";
    all += std::to_string(size);
  }
  return all + "]";
}

Shape shape_of(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ok(api, GetTensorTypeAndShape(api, value, &info));
  size_t rank = 0;
  OrtStatus* status = GetDimensionsCount(api, info, &rank);
  Shape shape(rank);
  if (status == nullptr) status = GetDimensions(api, info, shape.data(), rank);
  release_info(api, info);
  ok(api, status);
  return shape;
}

namespace {

Tensor tensor_of(const OrtApi& api, const OrtValue* value) {
  Tensor tensor{shape_of(api, value), nullptr};
  ok(api, GetTensorMutableData(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

}  // namespace

Tensor input(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  ok(api, KernelContext_GetInput(api, context, index, &value));
  return tensor_of(api, value);
}

float* output(const OrtApi& api, OrtKernelContext* context, const Shape& shape) {
  OrtValue* value = nullptr;
  ok(api, KernelContext_GetOutput(api, context, size_t{0}, shape.data(), shape.size(), &value));
  void* data = nullptr;
  ok(api, GetTensorMutableData(api, value, &data));
  return static_cast<float*>(data);
}

Tensor constant(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* what) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  ok(api, KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    invalid(std::string("the ") + what +
            " must be a constant initializer that is not also an input of the graph");
  }
  return tensor_of(api, value);
}

int64_t int_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                      int64_t otherwise) {
  int64_t value = otherwise;
  return succeeded(api, KernelInfoGetAttribute_int64(api, info, name, &value)) ? value : otherwise;
}

float float_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                      float otherwise) {
  float value = otherwise;
  return succeeded(api, KernelInfoGetAttribute_float(api, info, name, &value)) ? value : otherwise;
}

void ints_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, int64_t* values,
                    size_t n) {
  size_t found = 0;
  if (!succeeded(api, KernelInfoGetAttributeArray_int64(api, info, name,
                                                        static_cast<int64_t*>(nullptr), &found))) {
    return;
  }
  if (found != n) {
    invalid(std::string("attribute ") + name + " has " + std::to_string(found) +
            " values; it must have " + std::to_string(n));
  }
  ok(api, KernelInfoGetAttributeArray_int64(api, info, name, values, &found));
}

InferredShape inferred_shape(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  // The context owns what it gives.
  if (!succeeded(api, ShapeInferContext_GetInputTypeShape(api, context, index, &info)) ||
      info == nullptr) {
    return {};
  }
  size_t rank = 0;
  ok(api, GetDimensionsCount(api, info, &rank));
  InferredShape shape{Shape(rank), ""};
  ok(api, GetDimensions(api, info, shape.sizes.data(), rank));
  std::vector<const char*> names(rank, nullptr);
  ok(api, GetSymbolicDimensions(api, info, names.data(), rank));
  if (rank > 0 && names[0] != nullptr) shape.batch = names[0];
  return shape;
}

int64_t inferred_int(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
                     int64_t otherwise) {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = otherwise;
  size_t bytes = 0;
  if (!succeeded(api, ShapeInferContext_GetAttribute(api, context, name, &attribute)) ||
      !succeeded(api, ReadOpAttr(api, attribute, kAttributeInt, static_cast<void*>(&value),
                                 sizeof(value), &bytes))) {
    return otherwise;
  }
  return value;
}

void inferred_ints(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
                   int64_t* values, size_t n) {
  const OrtOpAttr* attribute = nullptr;
  if (!succeeded(api, ShapeInferContext_GetAttribute(api, context, name, &attribute))) return;
  std::vector<int64_t> read(n);
  size_t bytes = 0;
  if (succeeded(api, ReadOpAttr(api, attribute, kAttributeInts, static_cast<void*>(read.data()),
                                n * sizeof(int64_t), &bytes)) &&
      bytes == n * sizeof(int64_t)) {
    std::copy(read.begin(), read.end(), values);
  }
}

void set_output_shape(const OrtApi& api, OrtShapeInferContext* context,
                      const InferredShape& shape) {
  const Shape& sizes = shape.sizes;
  const bool named = !sizes.empty() && sizes[0] < 0 && !shape.batch.empty();
  const auto begin = sizes.begin() + (named ? 1 : 0);
  if (sizes.empty() || std::any_of(begin, sizes.end(), [](int64_t n) { return n < 0; })) return;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ok(api, CreateTensorTypeAndShapeInfo(api, &info));
  std::vector<const char*> names(sizes.size(), "");
  if (named) names[0] = shape.batch.c_str();
  OrtStatus* status = SetTensorElementType(api, info, kFloat);
  if (status == nullptr) status = SetDimensions(api, info, sizes.data(), sizes.size());
  if (status == nullptr) status = SetSymbolicDimensions(api, info, names.data(), names.size());
  if (status == nullptr) {
    status = ShapeInferContext_SetOutputTypeShape(api, context, size_t{0}, info);
  }
  release_info(api, info);
  ok(api, status);
}

void parallel_for(void* pool, size_t n, semisparse_task task, void* arg) {
  const Pool& p = *static_cast<const Pool*>(pool);
  // 0 batches: every task is handed out on its own, to whichever thread is free.
  ok(*p.api, KernelContext_ParallelFor(*p.api, p.context, task, n, size_t{0}, arg));
}

}  // namespace semisparse::ort
