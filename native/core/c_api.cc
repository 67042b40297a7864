// semisparse.h over the core: exceptions stop here.
#include <new>
#include <string>

#include "core/c_enum.h"
#include "core/chain.h"
#include "core/conv.h"
#include "core/error.h"
#include "core/layer_norm.h"
#include "core/measure.h"
#include "core/pool.h"
#include "core/select.h"
#include "core/source_map.h"
#include "core/squeeze_excite.h"
#include "semisparse.h"

struct semisparse_conv {
  semisparse::Conv layer;
};

struct semisparse_chain {
  semisparse::Chain layer;
};

struct semisparse_squeeze_excite {
  semisparse::SqueezeExcite layer;
};

namespace {

using semisparse::Error;

thread_local std::string last_error;

template <typename F>
semisparse_status guard(const F& f) {
  try {
    f();
    return SEMISPARSE_OK;
  } catch (const Error& error) {
    last_error = error.what() + std::string(".");
    return error.status();
  } catch (const std::bad_alloc&) {
    last_error = "out of memory; use a smaller batch or plane.";
    return SEMISPARSE_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    last_error = error.what();
    return SEMISPARSE_INTERNAL;
  }
}

void need(const void* pointer, const char* what) {
  if (pointer == nullptr)
    semisparse::invalid(std::string(what) + " is NULL; it must point to valid memory");
}

// The same for a convolution and for a chain of them; `what` is the handle's name.
template <typename Handle>
semisparse_status output_size(const Handle* handle, const char* what, int64_t height, int64_t width,
                              int64_t* out_height, int64_t* out_width) {
  return guard([&] {
    need(handle, what);
    need(out_height, "out_height");
    need(out_width, "out_width");
    const semisparse::Conv::Plane plane = handle->layer.output_plane(height, width);
    *out_height = plane.height;
    *out_width = plane.width;
  });
}

template <typename Handle, typename... Gate>
semisparse_status run(const Handle* handle, const char* what, const float* x, int64_t batch,
                      int64_t height, int64_t width, const float* residual, float* y,
                      semisparse_parallel_for parallel_for, void* ctx, Gate... gate) {
  return guard([&] {
    need(handle, what);
    need(x, "x");
    need(y, "y");
    handle->layer.run(x, batch, height, width, residual, y, semisparse::Parallel(parallel_for, ctx),
                      gate...);
  });
}

}  // namespace

extern "C" {

const char* semisparse_version(void) { return SEMISPARSE_VERSION; }
int semisparse_abi_version(void) { return SEMISPARSE_ABI_VERSION; }
const char* semisparse_last_error(void) { return last_error.c_str(); }

const char* semisparse_isa_name(size_t index, int* usable) {
  const semisparse::IsaInfo* info = semisparse::built_isa(index);
  if (info == nullptr) return nullptr;
  if (usable != nullptr) *usable = info->usable ? 1 : 0;
  return info->name;
}

const char* semisparse_isa(void) {
  const char* name = nullptr;
  guard([&] { name = semisparse::selected_isa().name; });
  return name;
}

const char* semisparse_kernel_name(size_t index, int* usable) {
  const semisparse::KernelInfo* kernel = semisparse::built_kernel(index);
  if (kernel == nullptr) return nullptr;
  for (size_t i = 0; usable != nullptr; ++i) {
    const semisparse::IsaInfo* info = semisparse::built_isa(i);
    if (info == nullptr) break;
    if (info->isa == kernel->isa) *usable = info->usable ? 1 : 0;
  }
  return kernel->name;
}

semisparse_status semisparse_source_map(const uint8_t* mask, int64_t height, int64_t width,
                                        semisparse_fill fill, int32_t* source) {
  return guard([&] {
    need(mask, "mask");
    need(source, "source");
    const int number = semisparse::number_of(fill);
    if (number != SEMISPARSE_FILL_BIAS && number != SEMISPARSE_FILL_NEAREST) {
      semisparse::invalid("fill " + std::to_string(number) +
                          " is unknown; it must be one of semisparse_fill");
    }
    semisparse::source_map(mask, height, width, fill, source);
  });
}

semisparse_status semisparse_mean_sources(const uint8_t* mask, int64_t height, int64_t width,
                                          int32_t* sources, float* weight) {
  return guard([&] {
    need(mask, "mask");
    need(sources, "sources");
    need(weight, "weight");
    semisparse::mean_sources(mask, height, width, sources, weight);
  });
}

semisparse_status semisparse_conv_create(const semisparse_conv_desc* desc, const float* weights,
                                         const float* bias, const int32_t* source,
                                         const float* weight, int64_t height, int64_t width,
                                         const char* isa, semisparse_conv** conv) {
  return guard([&] {
    need(desc, "desc");
    need(weights, "weights");
    need(conv, "conv");
    const semisparse::IsaInfo& info = semisparse::find_isa(isa);
    *conv = new semisparse_conv{{*desc, weights, bias, source, weight, height, width, info}};
  });
}

void semisparse_conv_destroy(semisparse_conv* conv) { delete conv; }

const char* semisparse_conv_kernel(const semisparse_conv* conv) {
  return conv == nullptr ? nullptr : conv->layer.kernel_name();
}

semisparse_status semisparse_conv_output_size(const semisparse_conv* conv, int64_t height,
                                              int64_t width, int64_t* out_height,
                                              int64_t* out_width) {
  return output_size(conv, "conv", height, width, out_height, out_width);
}

semisparse_status semisparse_conv_run(const semisparse_conv* conv, const float* x, int64_t batch,
                                      int64_t height, int64_t width, const float* gate,
                                      const float* residual, float* y,
                                      semisparse_parallel_for parallel_for, void* ctx) {
  return run(conv, "conv", x, batch, height, width, residual, y, parallel_for, ctx, gate);
}

semisparse_status semisparse_chain_create(semisparse_chain_form form,
                                          const semisparse_chain_stage* stages, const char* isa,
                                          semisparse_chain** chain) {
  return guard([&] {
    need(stages, "stages");
    need(chain, "chain");
    const int number = semisparse::number_of(form);
    if (number < SEMISPARSE_EXPAND_DEPTHWISE_PROJECT || number > SEMISPARSE_STEM_DEPTHWISE) {
      semisparse::invalid("chain form " + std::to_string(number) +
                          " is unknown; it must be one of semisparse_chain_form");
    }
    *chain = new semisparse_chain{{form, stages, semisparse::find_isa(isa)}};
  });
}

void semisparse_chain_destroy(semisparse_chain* chain) { delete chain; }

const char* semisparse_chain_kernel(const semisparse_chain* chain) {
  return chain == nullptr ? nullptr : chain->layer.kernel_name();
}

semisparse_status semisparse_chain_output_size(const semisparse_chain* chain, int64_t height,
                                               int64_t width, int64_t* out_height,
                                               int64_t* out_width) {
  return output_size(chain, "chain", height, width, out_height, out_width);
}

semisparse_status semisparse_chain_run(const semisparse_chain* chain, const float* x, int64_t batch,
                                       int64_t height, int64_t width, const float* residual,
                                       float* y, semisparse_parallel_for parallel_for, void* ctx) {
  return run(chain, "chain", x, batch, height, width, residual, y, parallel_for, ctx);
}

semisparse_status semisparse_squeeze_excite_create(const semisparse_chain_stage* stages, int scales,
                                                   const char* isa,
                                                   semisparse_squeeze_excite** squeeze_excite) {
  return guard([&] {
    need(stages, "stages");
    need(squeeze_excite, "squeeze_excite");
    *squeeze_excite = new semisparse_squeeze_excite{
        {stages[0], stages[1], scales != 0, semisparse::find_isa(isa)}};
  });
}

void semisparse_squeeze_excite_destroy(semisparse_squeeze_excite* squeeze_excite) {
  delete squeeze_excite;
}

semisparse_status semisparse_squeeze_excite_run(const semisparse_squeeze_excite* squeeze_excite,
                                                const float* x, int64_t batch, int64_t height,
                                                int64_t width, float* y,
                                                semisparse_parallel_for parallel_for, void* ctx) {
  return run(squeeze_excite, "squeeze_excite", x, batch, height, width, nullptr, y, parallel_for,
             ctx);
}

semisparse_status semisparse_pool_output_size(const semisparse_pool_desc* desc, int64_t height,
                                              int64_t width, int64_t* out_height,
                                              int64_t* out_width) {
  return guard([&] {
    need(desc, "desc");
    need(out_height, "out_height");
    need(out_width, "out_width");
    semisparse::pool_output_size(*desc, height, width, out_height, out_width);
  });
}

semisparse_status semisparse_pool_run(const semisparse_pool_desc* desc, const float* x,
                                      int64_t batch, int64_t height, int64_t width,
                                      int64_t channels, float* y, const char* isa,
                                      semisparse_parallel_for parallel_for, void* ctx) {
  return guard([&] {
    need(desc, "desc");
    need(x, "x");
    need(y, "y");
    semisparse::run_pool(*desc, x, batch, height, width, channels, y, semisparse::find_isa(isa),
                         semisparse::Parallel(parallel_for, ctx));
  });
}

semisparse_status semisparse_layer_norm_run(const float* x, int64_t batch, int64_t positions,
                                            int64_t channels, const float* scale,
                                            const float* shift, float epsilon, const uint8_t* mask,
                                            float* y, const char* isa,
                                            semisparse_parallel_for parallel_for, void* ctx) {
  return guard([&] {
    need(x, "x");
    need(scale, "scale");
    need(shift, "shift");
    need(y, "y");
    constexpr int64_t kMost = int64_t{1} << 31;
    const bool possible = batch >= 0 && positions > 0 && positions < kMost && channels > 0 &&
                          channels < kMost && batch < kMost / positions;
    if (!possible) {
      semisparse::invalid("a layer normalisation of " + std::to_string(batch) + " x " +
                          std::to_string(positions) + " positions with " +
                          std::to_string(channels) + " channels is not possible");
    }
    const semisparse::LayerNorm norm(static_cast<size_t>(channels), scale, shift, epsilon, mask,
                                     static_cast<size_t>(positions), semisparse::find_isa(isa));
    norm.run(x, static_cast<size_t>(batch * positions), y, semisparse::Parallel(parallel_for, ctx));
  });
}

semisparse_status semisparse_measure_fma(const char* isa, double seconds,
                                         double* flops_per_second) {
  return guard([&] {
    need(flops_per_second, "flops_per_second");
    *flops_per_second = semisparse::measure_fma(semisparse::find_isa(isa), seconds);
  });
}

semisparse_status semisparse_measure_copy(size_t bytes, double seconds, double* bytes_per_second) {
  return guard([&] {
    need(bytes_per_second, "bytes_per_second");
    *bytes_per_second = semisparse::measure_copy(bytes, seconds);
  });
}

}  // extern "C"
