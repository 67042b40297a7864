// The layer normalisation kernel over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/layernorm/layernorm.h"

namespace semisparse::layernorm {
namespace {

// Calls f(c, lanes) for each vector of channels, with the lanes that exist, and adds up what it
// gives, in four sums so that no addition waits for the one before.
template <typename F>
float sum(size_t channels, const F& f) {
  constexpr size_t kLanes = Vec::kLanes;
  Vec::T sums[4] = {Vec::set1(0), Vec::set1(0), Vec::set1(0), Vec::set1(0)};
  size_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
#pragma GCC unroll 4
    for (size_t v = 0; v < 4; ++v) sums[v] = Vec::add(sums[v], f(c + v * kLanes, kLanes));
  }
  for (; c + kLanes <= channels; c += kLanes) sums[0] = Vec::add(sums[0], f(c, kLanes));
  if (c < channels) sums[1] = Vec::add(sums[1], f(c, channels - c));
  return Vec::sum(Vec::add(Vec::add(sums[0], sums[1]), Vec::add(sums[2], sums[3])));
}

Vec::T load(const float* from, size_t lanes) {
  return lanes == Vec::kLanes ? Vec::load(from) : Vec::load_first(from, lanes);
}

// Some rows at a time, each part for all of them, so that none waits for the last sum of another;
// as many as stay in the first-level cache from one part to the next. One row after the other took
// 24 ns for a row of 40 to 320 channels (EPYC, Zen 4, AVX-512).
// With its own copy of the arguments: a vector store may alias anything.
void normalize(const Rows r) {
  constexpr size_t kLanes = Vec::kLanes;
  constexpr size_t kBlockFloats = 3072;
  alignas(64) float ones[kLanes];
  for (float& one : ones) one = 1;
  alignas(64) float means[kLanes];
  alignas(64) float inverses[kLanes] = {};
  const float each = 1.0f / static_cast<float>(r.channels);
  size_t block = kBlockFloats / r.channels;
  block = block < 1 ? 1 : block > kLanes ? kLanes : block;
  for (size_t first = 0; first < r.count; first += block) {
    const size_t rows = r.count - first < block ? r.count - first : block;
    const auto offset = [&](size_t k) {
      const size_t i = first + k;
      return (r.positions != nullptr ? r.positions[i] : r.first + i) * r.channels;
    };
    for (size_t k = 0; k < rows; ++k) {
      const float* x = r.x + offset(k);
      means[k] = each * sum(r.channels, [&](size_t c, size_t lanes) { return load(x + c, lanes); });
    }
    for (size_t k = 0; k < rows; ++k) {
      const float* x = r.x + offset(k);
      const Vec::T mean = Vec::set1(means[k]);
      // From the mean, not by the sum of squares, which loses all digits where the mean is large.
      inverses[k] = each * sum(r.channels, [&](size_t c, size_t lanes) {
                      Vec::T off = Vec::sub(load(x + c, lanes), mean);
                      // Lanes that do not exist have minus the mean.
                      if (lanes != kLanes) off = Vec::mul(off, Vec::load_first(ones, lanes));
                      return Vec::mul(off, off);
                    });
    }
    const Vec::T variances = Vec::add(Vec::load(inverses), Vec::set1(r.epsilon));
    Vec::store(inverses, Vec::div(Vec::set1(1), Vec::sqrt(variances)));
    for (size_t k = 0; k < rows; ++k) {
      const float* x = r.x + offset(k);
      float* y = r.y + offset(k);
      const Vec::T mean = Vec::set1(means[k]);
      const Vec::T inverse = Vec::set1(inverses[k]);
      const auto finish = [&](size_t c, size_t lanes) {
        const Vec::T off = Vec::mul(Vec::sub(load(x + c, lanes), mean), inverse);
        return Vec::fma(off, load(r.scale + c, lanes), load(r.shift + c, lanes));
      };
      size_t c = 0;
      for (; c + kLanes <= r.channels; c += kLanes) Vec::store(y + c, finish(c, kLanes));
      if (c < r.channels) {
        const size_t lanes = r.channels - c;
        Vec::store_first(y + c, finish(c, lanes), lanes);
      }
    }
  }
}

}  // namespace
}  // namespace semisparse::layernorm

#define SEMISPARSE_LAYERNORM_DEFINE(isa)                      \
  namespace semisparse::layernorm {                           \
  void layernorm_##isa(const Rows& rows) { normalize(rows); } \
  }
