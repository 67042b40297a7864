#include "ort/conv_inputs.h"

#include "core/source_map.h"

namespace semisparse::ort {

semisparse_conv_desc plain_conv() {
  semisparse_conv_desc desc{};
  desc.group = 1;
  desc.strides[0] = desc.strides[1] = desc.dilations[0] = desc.dilations[1] = 1;
  return desc;
}

void read_geometry(const OrtApi& api, const OrtKernelInfo* info, semisparse_conv_desc& desc,
                   const std::string& prefix) {
  ints_attribute(api, info, (prefix + "strides").c_str(), desc.strides, 2);
  ints_attribute(api, info, (prefix + "pads").c_str(), desc.pads, 4);
  ints_attribute(api, info, (prefix + "dilations").c_str(), desc.dilations, 2);
}

void read_activation(const OrtApi& api, const OrtKernelInfo* info, semisparse_activation activation,
                     semisparse_conv_desc& desc) {
  desc.activation = activation;
  if (activation == SEMISPARSE_LEAKY_RELU) {
    desc.activation_a = float_attribute(api, info, "alpha", 0.01f);
  } else if (activation == SEMISPARSE_CLIP) {
    desc.activation_a = float_attribute(api, info, "min", 0);
    desc.activation_b = float_attribute(api, info, "max", 6);
  }
}

ConvConstants::ConvConstants(const OrtApi& api, const OrtKernelInfo* info, size_t first, Fill fill,
                             semisparse_conv_desc desc, const std::string& stage)
    : desc_(desc),
      weights_(constant(api, info, first, (stage + "weights").c_str())),
      bias_(constant(api, info, first + 1, (stage + "bias").c_str())) {
  if (weights_.shape.size() != 4) {
    invalid("the " + stage + "weights of shape " + text(weights_.shape) +
            " are not [C_out, C_in / group, kh, kw]");
  }
  if (bias_.shape != Shape{weights_.shape[0]}) {
    invalid("the " + stage + "bias has shape " + text(bias_.shape) + "; weights of shape " +
            text(weights_.shape) + " need [" + std::to_string(weights_.shape[0]) + "]");
  }
  desc_.out_channels = weights_.shape[0];
  desc_.in_channels = weights_.shape[1] * desc_.group;
  desc_.kernel[0] = weights_.shape[2];
  desc_.kernel[1] = weights_.shape[3];
  if (fill == Fill::kNone) return;
  const bool means = fill == Fill::kMean;
  const std::string what = stage + (fill == Fill::kBias ? "mask"
                                    : means             ? "map of sources"
                                                        : "source map");
  const Tensor map = constant(api, info, first + 2, what.c_str());
  const size_t sides = map.shape.size();
  if (sides != (means ? 3 : 2) || (means && map.shape[0] != 2) || map.shape[sides - 2] == 0 ||
      map.shape[sides - 1] == 0) {
    invalid("the " + what + " of shape " + text(map.shape) + " is not " +
            (means ? "[2, H_out, W_out]" : "[H_out, W_out]"));
  }
  height_ = map.shape[sides - 2];
  width_ = map.shape[sides - 1];
  if (means) {
    weight_ = constant(api, info, first + 3, (stage + "weight of second sources").c_str());
    if (weight_->shape != Shape{height_, width_}) {
      invalid("the " + stage + "weight of second sources has shape " + text(weight_->shape) +
              "; sources of shape " + text(map.shape) + " need " + text({height_, width_}));
    }
  }
  source_.resize(static_cast<size_t>(height_ * width_) * (means ? 2 : 1));
  if (fill == Fill::kBias) {
    source_map(static_cast<const uint8_t*>(map.data), height_, width_, SEMISPARSE_FILL_BIAS,
               source_.data());
  } else {
    source_.assign(static_cast<const int32_t*>(map.data),
                   static_cast<const int32_t*>(map.data) + source_.size());
  }
}

semisparse_chain_stage ConvConstants::argument() const {
  return {&desc_,
          weights_.floats(),
          bias_.floats(),
          source_.empty() ? nullptr : source_.data(),
          weight_ ? weight_->floats() : nullptr,
          height_,
          width_};
}

void infer_plane(const OrtApi& api, const OrtShapeInferContext* context, const int64_t in[2],
                 const Shape& weights, int64_t out[2], const std::string& prefix) {
  semisparse_conv_desc desc = plain_conv();
  inferred_ints(api, context, (prefix + "strides").c_str(), desc.strides, 2);
  inferred_ints(api, context, (prefix + "pads").c_str(), desc.pads, 4);
  inferred_ints(api, context, (prefix + "dilations").c_str(), desc.dilations, 2);
  for (size_t i = 0; i < 2; ++i) {
    const int64_t reach = (weights[2 + i] - 1) * desc.dilations[i] + 1;
    const int64_t room = in[i] + desc.pads[i] + desc.pads[i + 2] - reach;
    const bool known = in[i] > 0 && weights[2 + i] > 0 && desc.strides[i] > 0 && room >= 0;
    out[i] = known ? room / desc.strides[i] + 1 : -1;
  }
}

}  // namespace semisparse::ort
