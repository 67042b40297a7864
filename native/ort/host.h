// ONNX Runtime's C API with exceptions and vectors, as far as the operators need it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "ort/ort_api.h"

namespace semisparse::ort {

using Shape = std::vector<int64_t>;

// A failed call becomes an exception.
inline void ok(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = error_message(api, status);
  release_status(api, status);
  throw Error(SEMISPARSE_INTERNAL, "ONNX Runtime: " + message);
}

inline bool succeeded(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  release_status(api, status);
  return false;
}

std::string text(const Shape& shape);

struct Tensor {
  Shape shape;
  void* data;
  const float* floats() const { return static_cast<const float*>(data); }
};

Shape shape_of(const OrtApi& api, const OrtValue* value);
Tensor input(const OrtApi& api, const OrtKernelContext* context, size_t index);
float* output(const OrtApi& api, OrtKernelContext* context, const Shape& shape);
// Throws where the input is no constant initializer: one that is also listed as a graph input can
// be replaced at run time, and packed weights would then be wrong.
Tensor constant(const OrtApi& api, const OrtKernelInfo* info, size_t index, const char* what);

int64_t int_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                      int64_t otherwise);
float float_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name,
                      float otherwise);
// Into values[n], which hold the default. Throws where the attribute has another length.
void ints_attribute(const OrtApi& api, const OrtKernelInfo* info, const char* name, int64_t* values,
                    size_t n);

// During shape inference: sizes with -1 for what is unknown, and the name of an unknown batch size.
// Empty for an unknown rank.
struct InferredShape {
  Shape sizes;
  std::string batch;
};
InferredShape inferred_shape(const OrtApi& api, const OrtShapeInferContext* context, size_t index);
int64_t inferred_int(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
                     int64_t otherwise);
void inferred_ints(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
                   int64_t* values, size_t n);
// Does nothing where a size is unknown and has no name: ONNX Runtime would take -1 for a size.
void set_output_shape(const OrtApi& api, OrtShapeInferContext* context, const InferredShape& shape);

// The API that the library was registered with: shape inference is handed none.
const OrtApi& registered_api();

// The session's own thread pool.
struct Pool {
  const OrtApi* api;
  OrtKernelContext* context;
};
void parallel_for(void* pool, size_t n, semisparse_task task, void* arg);

// Calls f, and turns what it throws into a status of `subject`.
template <typename F>
OrtStatus* guard(const OrtApi& api, const std::string& subject, const F& f) {
  try {
    f();
    return nullptr;
  } catch (const Error& error) {
    const int code = error.status() == SEMISPARSE_INVALID_ARGUMENT ? kInvalidArgument : kFail;
    return create_status(api, code, (subject + ": " + error.what() + ".").c_str());
  } catch (const std::exception& error) {
    return create_status(api, kFail, (subject + ": " + error.what() + ".").c_str());
  }
}

}  // namespace semisparse::ort
