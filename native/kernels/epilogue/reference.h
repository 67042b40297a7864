// The contract of epilogue.h for one value, in double precision. Never optimised.
#pragma once

#include <algorithm>
#include <cmath>

namespace semisparse::epilogue {

inline double reference_clamp(double v, double lo, double hi) {
  return std::min(std::max(v, lo), hi);
}
inline double reference_leaky_relu(double v, double a) { return v < 0 ? a * v : v; }
inline double reference_sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
inline double reference_silu(double v) { return v * reference_sigmoid(v); }
inline double reference_hard_sigmoid(double v) { return reference_clamp(v / 6 + 0.5, 0, 1); }
inline double reference_gelu(double v) { return v * 0.5 * std::erfc(-v * std::sqrt(0.5)); }
inline double reference_hard_swish(double v) { return v * reference_hard_sigmoid(v); }

}  // namespace semisparse::epilogue
