#include "core/winograd_weights.h"

#include "core/error.h"
#include "kernels/winograd/winograd.h"

namespace semisparse {
namespace {

constexpr double kTwo[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
constexpr double kFour[6][3] = {{64.0 / 81, 0, 0},
                                {-128.0 / 243, -32.0 / 81, -8.0 / 27},
                                {-128.0 / 243, 32.0 / 81, -8.0 / 27},
                                {32.0 / 243, 16.0 / 81, 8.0 / 27},
                                {32.0 / 243, -16.0 / 81, 8.0 / 27},
                                {0, 0, 1}};

// Filters that are transformed side by side, for the compiler's vectors.
constexpr size_t kBatch = 4;

// In double precision, since these roundings would be in every output.
template <size_t kInputs>
void transform(const double (&matrix)[kInputs][3], const float* weights, size_t channels, size_t nr,
               float* u) {
  const size_t stride = channels * nr;
  for (size_t i = 0; i < stride; i += kBatch) {
    double half[kInputs][3][kBatch];
    for (size_t r = 0; r < kInputs; ++r) {
      for (size_t x = 0; x < 3; ++x) {
        for (size_t b = 0; b < kBatch; ++b) {
          half[r][x][b] = 0;
          for (size_t y = 0; y < 3; ++y) {
            half[r][x][b] +=
                matrix[r][y] * static_cast<double>(weights[(y * 3 + x) * stride + i + b]);
          }
        }
      }
    }
    for (size_t k = 0; k < kInputs * kInputs; ++k) {
      for (size_t b = 0; b < kBatch; ++b) {
        double sum = 0;
        for (size_t x = 0; x < 3; ++x) sum += half[k / kInputs][x][b] * matrix[k % kInputs][x];
        u[k * stride + i + b] = static_cast<float>(sum);
      }
    }
  }
}

}  // namespace

void transform_filters(size_t outputs, const float* weights, size_t channels, size_t nr, float* u) {
  if (outputs == 2) {
    transform(kTwo, weights, channels, nr, u);
  } else {
    transform(kFour, weights, channels, nr, u);
  }
}

}  // namespace semisparse
