// The part of ONNX Runtime's C API that the operators use.
//
// The PyPI wheel ships no headers, and the API is append-only ("NEVER remove or rearrange", pinned
// by static asserts in every release): a function's index in OrtApi never changes. So this header
// names the indices, and the library needs nothing of ONNX Runtime to build. Tried
// on 1.17.3, 1.21.1 and 1.31.1. KernelContext_ParallelFor (1.17) is the newest function used.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtOpAttr;

struct OrtApi {
  void* functions[275];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// Version 17 of the structure, in the order that ONNX Runtime expects.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // extern "C"

namespace semisparse::ort {

// Values of ONNX Runtime's enumerations.
constexpr uint32_t kApiVersion = 17;
constexpr int kFail = 1;
constexpr int kInvalidArgument = 2;
constexpr int kFloat = 1;  // element types
constexpr int kUint8 = 2;
constexpr int kInt32 = 6;
constexpr int kRequired = 0;      // input characteristics
constexpr int kMemoryCpu = 0;     // memory types
constexpr int kAttributeInt = 1;  // attribute types
constexpr int kAttributeInts = 2;

#define SEMISPARSE_ORT(name, index, ...)                                                 \
  template <typename... Args>                                                            \
  auto name(const OrtApi& api, Args... args) {                                           \
    return reinterpret_cast<OrtStatus* (*)(__VA_ARGS__)>(api.functions[index])(args...); \
  }

SEMISPARSE_ORT(CreateCustomOpDomain, 26, const char*, OrtCustomOpDomain**)
SEMISPARSE_ORT(CustomOpDomain_Add, 27, OrtCustomOpDomain*, const OrtCustomOp*)
SEMISPARSE_ORT(AddCustomOpDomain, 28, OrtSessionOptions*, OrtCustomOpDomain*)
SEMISPARSE_ORT(GetTensorMutableData, 51, OrtValue*, void**)
SEMISPARSE_ORT(CreateTensorTypeAndShapeInfo, 57, OrtTensorTypeAndShapeInfo**)
SEMISPARSE_ORT(SetTensorElementType, 58, OrtTensorTypeAndShapeInfo*, int)
SEMISPARSE_ORT(SetDimensions, 59, OrtTensorTypeAndShapeInfo*, const int64_t*, size_t)
SEMISPARSE_ORT(GetDimensionsCount, 61, const OrtTensorTypeAndShapeInfo*, size_t*)
SEMISPARSE_ORT(GetDimensions, 62, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)
SEMISPARSE_ORT(GetSymbolicDimensions, 63, const OrtTensorTypeAndShapeInfo*, const char**, size_t)
SEMISPARSE_ORT(GetTensorTypeAndShape, 65, const OrtValue*, OrtTensorTypeAndShapeInfo**)
SEMISPARSE_ORT(KernelInfoGetAttribute_float, 85, const OrtKernelInfo*, const char*, float*)
SEMISPARSE_ORT(KernelInfoGetAttribute_int64, 86, const OrtKernelInfo*, const char*, int64_t*)
SEMISPARSE_ORT(KernelContext_GetInput, 90, const OrtKernelContext*, size_t, const OrtValue**)
SEMISPARSE_ORT(KernelContext_GetOutput, 91, OrtKernelContext*, size_t, const int64_t*, size_t,
               OrtValue**)
SEMISPARSE_ORT(KernelInfoGetAttributeArray_int64, 163, const OrtKernelInfo*, const char*, int64_t*,
               size_t*)
SEMISPARSE_ORT(KernelInfoGetConstantInput_tensor, 249, const OrtKernelInfo*, size_t, int*,
               const OrtValue**)
SEMISPARSE_ORT(ShapeInferContext_GetInputTypeShape, 268, const OrtShapeInferContext*, size_t,
               OrtTensorTypeAndShapeInfo**)
SEMISPARSE_ORT(ShapeInferContext_GetAttribute, 269, const OrtShapeInferContext*, const char*,
               const OrtOpAttr**)
SEMISPARSE_ORT(ShapeInferContext_SetOutputTypeShape, 270, const OrtShapeInferContext*, size_t,
               const OrtTensorTypeAndShapeInfo*)
SEMISPARSE_ORT(SetSymbolicDimensions, 271, OrtTensorTypeAndShapeInfo*, const char**, size_t)
SEMISPARSE_ORT(ReadOpAttr, 272, const OrtOpAttr*, int, void*, size_t, size_t*)
SEMISPARSE_ORT(KernelContext_ParallelFor, 274, const OrtKernelContext*, void (*)(void*, size_t),
               size_t, size_t, void*)

#undef SEMISPARSE_ORT

inline OrtStatus* create_status(const OrtApi& api, int code, const char* message) {
  return reinterpret_cast<OrtStatus* (*)(int, const char*)>(api.functions[0])(code, message);
}
inline const char* error_message(const OrtApi& api, const OrtStatus* status) {
  return reinterpret_cast<const char* (*)(const OrtStatus*)>(api.functions[2])(status);
}
inline void release_status(const OrtApi& api, OrtStatus* status) {
  reinterpret_cast<void (*)(OrtStatus*)>(api.functions[93])(status);
}
inline void release_info(const OrtApi& api, OrtTensorTypeAndShapeInfo* info) {
  reinterpret_cast<void (*)(OrtTensorTypeAndShapeInfo*)>(api.functions[99])(info);
}

}  // namespace semisparse::ort
