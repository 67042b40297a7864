/* semisparse: convolutions that skip positions of their output plane.
 *
 * The only public header. Plain C; no function throws, and none keeps a pointer it was given
 * longer than the call. Handles are immutable after creation, so one handle may be run from
 * several threads at once. Tensors are float32, dense, and NHWC where nothing else is said; weights
 * are OIHW as in ONNX.
 */
#ifndef SEMISPARSE_H_
#define SEMISPARSE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SEMISPARSE_API __attribute__((visibility("default")))
#else
#define SEMISPARSE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SEMISPARSE_ABI_VERSION 3

typedef enum semisparse_status {
  SEMISPARSE_OK = 0,
  SEMISPARSE_INVALID_ARGUMENT = 1, /* the caller's values do not fit together */
  SEMISPARSE_UNSUPPORTED = 2,      /* the instruction set asked for is not usable here */
  SEMISPARSE_OUT_OF_MEMORY = 3,
  SEMISPARSE_INTERNAL = 4
} semisparse_status;

typedef enum semisparse_activation {
  SEMISPARSE_IDENTITY = 0,
  SEMISPARSE_RELU = 1,
  SEMISPARSE_CLIP = 2,       /* min(max(v, activation_a), activation_b) */
  SEMISPARSE_LEAKY_RELU = 3, /* v < 0 ? activation_a * v : v */
  SEMISPARSE_SILU = 4,       /* v * sigmoid(v) */
  SEMISPARSE_HARD_SWISH = 5, /* v * min(max(v / 6 + 0.5, 0), 1) */
  SEMISPARSE_SIGMOID = 6,
  SEMISPARSE_HARD_SIGMOID = 7, /* min(max(v / 6 + 0.5, 0), 1) */
  SEMISPARSE_GELU = 8          /* v * (1 + erf(v / sqrt(2))) / 2 */
} semisparse_activation;

typedef enum semisparse_fill {
  SEMISPARSE_FILL_BIAS = 0, /* masked positions have a linear part of zero */
  SEMISPARSE_FILL_NEAREST =
      1 /* masked positions take the linear part of the nearest computed one */
} semisparse_fill;

typedef enum semisparse_layout { SEMISPARSE_NHWC = 0, SEMISPARSE_NCHW = 1 } semisparse_layout;

typedef struct semisparse_conv semisparse_conv;

typedef struct semisparse_conv_desc {
  int64_t in_channels;
  int64_t out_channels;
  int64_t group;
  int64_t kernel[2];    /* height, width */
  int64_t strides[2];   /* height, width */
  int64_t pads[4];      /* top, left, bottom, right */
  int64_t dilations[2]; /* height, width */
  semisparse_activation activation;
  float activation_a;
  float activation_b;
  semisparse_layout input_layout; /* of x; NCHW is for the few channels of a network's input */
} semisparse_conv_desc;

/* Runs task(arg, i) for every i in [0, n), in any order and on any threads, and returns when all
 * are done. Where a semisparse_parallel_for may be NULL, NULL means serially. */
typedef void (*semisparse_task)(void* arg, size_t index);
typedef void (*semisparse_parallel_for)(void* ctx, size_t n, semisparse_task task, void* arg);

/* "MAJOR.MINOR.PATCH" of the library, and the version of this interface. */
SEMISPARSE_API const char* semisparse_version(void);
SEMISPARSE_API int semisparse_abi_version(void);

/* One sentence about this thread's last call that did not return SEMISPARSE_OK. */
SEMISPARSE_API const char* semisparse_last_error(void);

/* Instruction sets this library was built with, best first; usable tells whether this CPU has it.
 * An index out of range gives NULL. */
SEMISPARSE_API const char* semisparse_isa_name(size_t index, int* usable);

/* The instruction set in force: $SEMISPARSE_ISA if set, else the best usable one. NULL, with
 * semisparse_last_error, when the one asked for was not built or cannot run here. */
SEMISPARSE_API const char* semisparse_isa(void);

/* Kernels built, in order of preference within their family, by symbol name; usable as above. An
 * index out of range gives NULL. */
SEMISPARSE_API const char* semisparse_kernel_name(size_t index, int* usable);

/* Source map of a mask (docs/format.md): source[p] is p where mask[p] is not 0, else -1 for
 * FILL_BIAS, else the nearest computed position: Euclidean distance on the plane, ties to the
 * lowest row-major index. FILL_NEAREST wants at least one computed position. */
SEMISPARSE_API semisparse_status semisparse_source_map(const uint8_t* mask, int64_t height,
                                                       int64_t width, semisparse_fill fill,
                                                       int32_t* source);

/* The two nearest computed positions of each position, as above, sources[0] and sources[1] of
 * [2, height, width], and the weight of the second [height, width] by which their mean is weighted
 * by inverse distance. A computed position has itself twice, and weight 0; where only one is
 * computed, the others have that one twice. Wants at least one. */
SEMISPARSE_API semisparse_status semisparse_mean_sources(const uint8_t* mask, int64_t height,
                                                         int64_t width, int32_t* sources,
                                                         float* weight);

/* Packs a convolution. weights: [out_channels, in_channels / group, kernel[0], kernel[1]]; bias:
 * [out_channels] or NULL for zeros; source: source map of the output plane [height, width], or
 * NULL (height and width ignored) for a dense convolution at any size. With weight, of [height,
 * width] and within [0, 1], source is [2, height, width], and a position p that is not computed has
 * the linear part (1 - weight[p]) * L[source[0][p]] + weight[p] * L[source[1][p]], or where both
 * sources are the same L of it. isa: a name from semisparse_isa_name, or NULL for semisparse_isa().
 * Weights and bias must be finite. */
SEMISPARSE_API semisparse_status semisparse_conv_create(const semisparse_conv_desc* desc,
                                                        const float* weights, const float* bias,
                                                        const int32_t* source, const float* weight,
                                                        int64_t height, int64_t width,
                                                        const char* isa, semisparse_conv** conv);
SEMISPARSE_API void semisparse_conv_destroy(semisparse_conv* conv);

/* Symbol names of the kernels the convolution may run, joined by " + ": a dense one may choose by
 * the plane it is run on. */
SEMISPARSE_API const char* semisparse_conv_kernel(const semisparse_conv* conv);

/* Output plane for an input plane. INVALID_ARGUMENT when it would be empty, or when it is not the
 * one the source map was made for. */
SEMISPARSE_API semisparse_status semisparse_conv_output_size(const semisparse_conv* conv,
                                                             int64_t height, int64_t width,
                                                             int64_t* out_height,
                                                             int64_t* out_width);

/* y = activation(fill(W * (gate * x)) + bias + residual). x: [batch, height, width, in_channels],
 * or with input_layout NCHW [batch, in_channels, height, width]; gate: [batch, in_channels], as in
 * squeeze and excitation; residual and y: [batch, out_height, out_width, out_channels]. gate and
 * residual may be NULL, and residual may not overlap y. INVALID_ARGUMENT where there is a gate and
 * the convolution is not pointwise: NHWC, kernel and group 1, no padding, more than one channel. No
 * alignment is required. */
SEMISPARSE_API semisparse_status semisparse_conv_run(const semisparse_conv* conv, const float* x,
                                                     int64_t batch, int64_t height, int64_t width,
                                                     const float* gate, const float* residual,
                                                     float* y, semisparse_parallel_for parallel_for,
                                                     void* ctx);

/* A pointwise, a depthwise and a pointwise convolution in a row, as in an inverted residual, or two
 * of them, run as one: the planes in between are never written to memory as a whole. In place of
 * the first there can be a stem, the network's first convolution. */
typedef struct semisparse_chain semisparse_chain;

typedef enum semisparse_chain_form {
  SEMISPARSE_EXPAND_DEPTHWISE_PROJECT = 0,
  SEMISPARSE_DEPTHWISE_PROJECT = 1,
  SEMISPARSE_EXPAND_DEPTHWISE = 2,
  SEMISPARSE_STEM_DEPTHWISE_PROJECT = 3,
  SEMISPARSE_STEM_DEPTHWISE = 4
} semisparse_chain_form;

/* One convolution of a chain: the arguments of semisparse_conv_create. */
typedef struct semisparse_chain_stage {
  const semisparse_conv_desc* desc;
  const float* weights;
  const float* bias;
  const int32_t* source;
  const float* weight;
  int64_t height;
  int64_t width;
} semisparse_chain_stage;

/* stages: as many as the form names, in its order, each with a bias and activation of its own.
 * INVALID_ARGUMENT where a convolution to expand or project is not pointwise (kernel, strides and
 * group 1, no padding), a stem's group is not 1, the one in between not depthwise (group =
 * in_channels = out_channels), a stem does not read NCHW or another one not NHWC, or one does not
 * fit the one before. */
SEMISPARSE_API semisparse_status semisparse_chain_create(semisparse_chain_form form,
                                                         const semisparse_chain_stage* stages,
                                                         const char* isa, semisparse_chain** chain);
SEMISPARSE_API void semisparse_chain_destroy(semisparse_chain* chain);

/* As for a convolution, whose input is NCHW where there is a stem. The residual is added to the
 * projection; it must be NULL without one. */
SEMISPARSE_API const char* semisparse_chain_kernel(const semisparse_chain* chain);
SEMISPARSE_API semisparse_status semisparse_chain_output_size(const semisparse_chain* chain,
                                                              int64_t height, int64_t width,
                                                              int64_t* out_height,
                                                              int64_t* out_width);
SEMISPARSE_API semisparse_status semisparse_chain_run(const semisparse_chain* chain, const float* x,
                                                      int64_t batch, int64_t height, int64_t width,
                                                      const float* residual, float* y,
                                                      semisparse_parallel_for parallel_for,
                                                      void* ctx);

/* Squeeze and excitation (arXiv 1709.01507): from the mean of each channel's plane, by two
 * pointwise convolutions, each with a bias and activation of its own, a gate for each channel. */
typedef struct semisparse_squeeze_excite semisparse_squeeze_excite;

/* stages: two, the second from the first one's output channels back to its input channels, without
 * source maps. scales: whether it gives the input times the gates, else the gates. */
SEMISPARSE_API semisparse_status
semisparse_squeeze_excite_create(const semisparse_chain_stage* stages, int scales, const char* isa,
                                 semisparse_squeeze_excite** squeeze_excite);
SEMISPARSE_API void semisparse_squeeze_excite_destroy(semisparse_squeeze_excite* squeeze_excite);
/* x: [batch, height, width, channels]; y: the same where it scales, else [batch, 1, 1, channels].
 */
SEMISPARSE_API semisparse_status semisparse_squeeze_excite_run(
    const semisparse_squeeze_excite* squeeze_excite, const float* x, int64_t batch, int64_t height,
    int64_t width, float* y, semisparse_parallel_for parallel_for, void* ctx);

typedef enum semisparse_pool_kind {
  SEMISPARSE_MAX_POOL = 0,
  SEMISPARSE_AVERAGE_POOL = 1,
  SEMISPARSE_L2_POOL = 2 /* root of the sum of squares */
} semisparse_pool_kind;

typedef struct semisparse_pool_desc {
  semisparse_pool_kind kind;
  int64_t kernel[2];
  int64_t strides[2];
  int64_t pads[4];
  int64_t dilations[2];  /* 1 but for MAX_POOL */
  int ceil_mode;         /* as ONNX and torch define it */
  int count_include_pad; /* AVERAGE_POOL only */
} semisparse_pool_desc;

SEMISPARSE_API semisparse_status semisparse_pool_output_size(const semisparse_pool_desc* desc,
                                                             int64_t height, int64_t width,
                                                             int64_t* out_height,
                                                             int64_t* out_width);
/* x: [batch, height, width, channels]; y: [batch, out_height, out_width, channels]. */
SEMISPARSE_API semisparse_status semisparse_pool_run(
    const semisparse_pool_desc* desc, const float* x, int64_t batch, int64_t height, int64_t width,
    int64_t channels, float* y, const char* isa, semisparse_parallel_for parallel_for, void* ctx);

/* Layer normalisation of the channels of each position. x, y: [batch, positions, channels]; scale,
 * shift: [channels]; mask: [positions], 0 where a position is not computed but holds 0, or NULL. */
SEMISPARSE_API semisparse_status semisparse_layer_norm_run(
    const float* x, int64_t batch, int64_t positions, int64_t channels, const float* scale,
    const float* shift, float epsilon, const uint8_t* mask, float* y, const char* isa,
    semisparse_parallel_for parallel_for, void* ctx);

/* What this machine can do, measured on the calling thread for about the given time: fused
 * multiply-adds of one instruction set from registers (FLOP/s, an FMA is 2), and copying a buffer
 * of the given size (bytes/s, read plus written). */
SEMISPARSE_API semisparse_status semisparse_measure_fma(const char* isa, double seconds,
                                                        double* flops_per_second);
SEMISPARSE_API semisparse_status semisparse_measure_copy(size_t bytes, double seconds,
                                                         double* bytes_per_second);

#ifdef __cplusplus
}
#endif

#endif /* SEMISPARSE_H_ */
