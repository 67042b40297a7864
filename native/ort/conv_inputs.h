// What the operators with convolutions have in common: their names' parts, and how the constants of
// a convolution are read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ort/host.h"
#include "semisparse.h"

namespace semisparse::ort {

enum class Fill { kNone, kBias, kNearest, kMean };

struct FillName {
  Fill fill;
  const char* infix;
};
constexpr FillName kFills[] = {{Fill::kNone, ""},
                               {Fill::kBias, "FillBias"},
                               {Fill::kNearest, "FillNearest"},
                               {Fill::kMean, "FillMean"}};

struct ActivationName {
  semisparse_activation activation;
  const char* suffix;
};
constexpr ActivationName kActivations[] = {
    {SEMISPARSE_IDENTITY, ""},       {SEMISPARSE_RELU, "Relu"},
    {SEMISPARSE_CLIP, "Clip"},       {SEMISPARSE_LEAKY_RELU, "LeakyRelu"},
    {SEMISPARSE_SILU, "Silu"},       {SEMISPARSE_HARD_SWISH, "HardSwish"},
    {SEMISPARSE_SIGMOID, "Sigmoid"}, {SEMISPARSE_HARD_SIGMOID, "HardSigmoid"},
    {SEMISPARSE_GELU, "Gelu"},
};

// What gates end with; the layers of a block do not have it between them.
constexpr bool is_gate(semisparse_activation activation) {
  return activation == SEMISPARSE_SIGMOID || activation == SEMISPARSE_HARD_SIGMOID;
}

// W, B and, with a fill, the mask, the source map, or two sources and the weight of the second.
constexpr size_t conv_inputs(Fill fill) {
  return fill == Fill::kNone ? 2 : fill == Fill::kMean ? 4 : 3;
}
// Element type of the input `index` of those.
constexpr int conv_input_type(Fill fill, size_t index) {
  if (index < 2 || index == 3) return kFloat;
  return fill == Fill::kBias ? kUint8 : kInt32;
}

// A convolution with stride and dilation 1 and no padding.
semisparse_conv_desc plain_conv();
// The node's strides, pads and dilations, whose names begin with `prefix`.
void read_geometry(const OrtApi& api, const OrtKernelInfo* info, semisparse_conv_desc& desc,
                   const std::string& prefix = "");
void read_activation(const OrtApi& api, const OrtKernelInfo* info, semisparse_activation activation,
                     semisparse_conv_desc& desc);

// The constants of a convolution, the first of them at input `first`.
class ConvConstants {
 public:
  // The sizes of weights complete desc. Throws Error where an input does not fit. `stage` is what
  // errors call it by, as in "the expansion's ".
  ConvConstants(const OrtApi& api, const OrtKernelInfo* info, size_t first, Fill fill,
                semisparse_conv_desc desc, const std::string& stage);
  ConvConstants(const ConvConstants&) = delete;
  ConvConstants(ConvConstants&&) = default;

  // For as long as this object and the node's initializers live.
  semisparse_chain_stage argument() const;

 private:
  semisparse_conv_desc desc_;
  Tensor weights_, bias_;
  std::vector<int32_t> source_;
  std::optional<Tensor> weight_;
  int64_t height_ = 0;
  int64_t width_ = 0;
};

// During shape inference: the output plane of an input plane, -1 for an unknown side.
void infer_plane(const OrtApi& api, const OrtShapeInferContext* context, const int64_t in[2],
                 const Shape& weights, int64_t out[2], const std::string& prefix = "");

}  // namespace semisparse::ort
