// The epilogue kernels over any vector type; used as kernels/igemm/generic.h is.
#pragma once

#include "kernels/epilogue/epilogue.h"

namespace semisparse::epilogue {
namespace {

// 1 / (1 + e^-x) to within 2 ulp. e^-x = 2^n * e^-t with n = round(-x / ln 2) and
// |t| <= ln(2) / 2, where the polynomial of degree 6, of least relative error with the constant 1,
// is exact to float precision; ln 2 is added in two parts (Cody and Waite) so that t keeps its last
// bits. n is rounded by adding 1.5 * 2^23, and 127 more, so that the sum's last bits are the
// exponent of 2^n. The clamp keeps that between 1 and 255, the latter being infinity: beyond, the
// sigmoid is 0 or 1 to float precision, and silu(-inf) is the NaN that torch gives.
Vec::T sigmoid_of(Vec::T x) {
  const Vec::T z = Vec::clamp(x, Vec::set1(-89), Vec::set1(87));
  const Vec::T magic = Vec::set1(0x1.8000FEp23f);
  const Vec::T biased = Vec::fma(z, Vec::set1(-1.44269504f), magic);
  const Vec::T n = Vec::sub(biased, magic);
  Vec::T t = Vec::fma(n, Vec::set1(0.693359375f), z);
  t = Vec::fma(n, Vec::set1(-2.12194440e-4f), t);
  Vec::T e = Vec::set1(0x1.6ae6e6p-10f);
  constexpr float kRest[] = {-0x1.12679ep-7f, 0x1.555822p-5f, -0x1.55541ap-3f,
                             0x1.fffffcp-2f,  -1.0f,          1.0f};
  for (const float k : kRest) e = Vec::fma(e, t, Vec::set1(k));
  e = Vec::mul(e, Vec::power_of_two(biased));
  return Vec::div(Vec::set1(1), Vec::add(Vec::set1(1), e));
}

// y[j] = f(y[j]). The last vector overlaps the one before it, and is loaded before that is stored:
// a masked store would keep the loads of what is behind it waiting, so that GELU took three times
// as long on rows of 24 channels as on rows of 32 (EPYC, Zen 4, AVX-512).
template <typename F>
void map_span(float* y, size_t n, F f) {
  constexpr size_t kLanes = Vec::kLanes;
  if (n < kLanes) {
    Vec::store_first(y, f(Vec::load_first(y, n)), n);
    return;
  }
  const Vec::T last = f(Vec::load(y + n - kLanes));
  for (size_t j = 0; j + kLanes < n; j += kLanes) Vec::store(y + j, f(Vec::load(y + j)));
  Vec::store(y + n - kLanes, last);
}

// All rows in one call, so that the constants of f stay in registers. Those that lie side by side
// are one span.
template <typename F>
void map(const Places p, F f) {
  for (size_t i = 0; i < p.count;) {
    const size_t dest = p.dests[i * p.step];
    size_t rows = 1;
    if (p.ldy == p.n) {
      while (i + rows < p.count && p.dests[(i + rows) * p.step] == dest + rows) ++rows;
    }
    map_span(p.y + dest * p.ldy, rows * p.n, f);
    i += rows;
  }
}

// With its own copy of the arguments: a vector store may alias anything.
template <bool kAdds>
void spread_rows(const Spread s) {
  constexpr size_t kLanes = Vec::kLanes;
  // The places are scattered, so nothing but this fetches them in time.
  constexpr size_t kAhead = 8;
  constexpr size_t kLineFloats = 16;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  for (size_t i = 0; i < s.count; ++i) {
    if (i + kAhead < s.count) {
      const size_t soon = s.entries[i + kAhead].dest * s.ldy;
      for (size_t j = 0; j < s.n; j += kLineFloats) {
        __builtin_prefetch(s.y + soon + j, 1, 3);
        if (kAdds) __builtin_prefetch(s.residual + soon + j, 0, 3);
      }
    }
    const float* from = s.linear + s.entries[i].source * s.ldl;
    float* to = s.y + s.entries[i].dest * s.ldy;
    const float* added = kAdds ? s.residual + s.entries[i].dest * s.ldy : nullptr;
    const auto whole = [&](size_t j) {
      const Vec::T value = Vec::load(from + j);
      return Vec::clamp(kAdds ? Vec::add(value, Vec::load(added + j)) : value, lo, hi);
    };
    if (s.n < kLanes) {
      Vec::T value = Vec::load_first(from, s.n);
      if (kAdds) value = Vec::add(value, Vec::load_first(added, s.n));
      Vec::store_first(to, Vec::clamp(value, lo, hi), s.n);
      continue;
    }
    // Overlaps the vector before it, and is loaded before that is stored: a row may be its own
    // source. A masked store would keep the loads of the row behind it waiting: the projection of
    // 56x56 to 24 channels took 4 to 6% longer (EPYC, Zen 4, AVX-512).
    const Vec::T last = whole(s.n - kLanes);
    for (size_t j = 0; j + kLanes < s.n; j += kLanes) Vec::store(to + j, whole(j));
    Vec::store(to + s.n - kLanes, last);
  }
}

void spread(const Spread& s) {
  if (s.residual != nullptr) {
    spread_rows<true>(s);
  } else {
    spread_rows<false>(s);
  }
}

template <bool kAdds>
void mean_rows(const MeanRows s) {
  constexpr size_t kLanes = Vec::kLanes;
  const Vec::T lo = Vec::set1(s.lo);
  const Vec::T hi = Vec::set1(s.hi);
  for (size_t i = 0; i < s.count; ++i) {
    const Mean& mean = s.entries[i];
    const float* first = s.linear + mean.first * s.ldl;
    const float* second = s.linear + mean.second * s.ldl;
    float* to = s.y + mean.dest * s.ldy;
    const float* added = kAdds ? s.residual + mean.dest * s.ldy : nullptr;
    const Vec::T w = Vec::set1(mean.weight);
    const Vec::T rest = Vec::set1(1 - mean.weight);
    const auto finish = [&](Vec::T a, Vec::T b, Vec::T r) {
      const Vec::T value = Vec::fma(b, w, Vec::mul(a, rest));
      return Vec::clamp(kAdds ? Vec::add(value, r) : value, lo, hi);
    };
    size_t j = 0;
    for (; j + kLanes <= s.n; j += kLanes) {
      const Vec::T r = kAdds ? Vec::load(added + j) : w;
      Vec::store(to + j, finish(Vec::load(first + j), Vec::load(second + j), r));
    }
    if (j < s.n) {
      const size_t last = s.n - j;
      const Vec::T r = kAdds ? Vec::load_first(added + j, last) : w;
      const Vec::T a = Vec::load_first(first + j, last);
      Vec::store_first(to + j, finish(a, Vec::load_first(second + j, last), r), last);
    }
  }
}

void mean(const MeanRows& s) {
  if (s.residual != nullptr) {
    mean_rows<true>(s);
  } else {
    mean_rows<false>(s);
  }
}

void leaky_relu(const Places& places, float a) {
  map(places, [&](Vec::T x) { return Vec::select_negative(x, Vec::mul(x, Vec::set1(a)), x); });
}

void silu(const Places& places, float) {
  map(places, [](Vec::T x) { return Vec::mul(x, sigmoid_of(x)); });
}

void sigmoid(const Places& places, float) { map(places, sigmoid_of); }

Vec::T hard_sigmoid_of(Vec::T x) {
  const Vec::T line = Vec::fma(x, Vec::set1(1.0f / 6), Vec::set1(0.5f));
  return Vec::clamp(line, Vec::set1(0), Vec::set1(1));
}

void hard_sigmoid(const Places& places, float) { map(places, hard_sigmoid_of); }

void hard_swish(const Places& places, float) {
  map(places, [](Vec::T x) { return Vec::mul(x, hard_sigmoid_of(x)); });
}

// x * (1 + erf(x / sqrt(2))) / 2 to within 2.5e-7 |x|. The part of the normal distribution between
// 0 and x is x * P(x^2) / Q(x^2) with polynomials of degree 5, found for the least error up
// to 5.75, where that is 1.4e-8; beyond, the distribution is 0 or 1 to float precision. It is 0
// exactly, so that gelu(-inf) is the NaN that torch gives.
Vec::T gelu_of(Vec::T x) {
  constexpr float kEnd = 5.75f;
  constexpr float kP[] = {6.388112979038851e-06f, 1.8235971219837666e-04f, 4.758947994560003e-03f,
                          3.523904085159302e-02f, 3.989422023296356e-01f};
  constexpr float kQ[] = {7.76810193201527e-05f, 1.9614771008491516e-03f, 2.9430771246552467e-02f,
                          2.5499650835990906e-01f, 1.0f};
  const Vec::T z = Vec::clamp(x, Vec::set1(-kEnd), Vec::set1(kEnd));
  const Vec::T u = Vec::mul(z, z);
  Vec::T p = Vec::set1(2.1313034892500582e-08f);
  Vec::T q = Vec::set1(1.1581350918277167e-06f);
  for (const float k : kP) p = Vec::fma(p, u, Vec::set1(k));
  for (const float k : kQ) q = Vec::fma(q, u, Vec::set1(k));
  const Vec::T distribution = Vec::fma(Vec::div(p, q), z, Vec::set1(0.5f));
  const Vec::T zero = Vec::set1(0);
  return Vec::mul(x, Vec::select_negative(Vec::add(x, Vec::set1(kEnd)), zero, distribution));
}

void gelu(const Places& places, float) { map(places, gelu_of); }

}  // namespace
}  // namespace semisparse::epilogue

#define SEMISPARSE_EPILOGUE_DEFINE(isa)                                               \
  namespace semisparse::epilogue {                                                    \
  void spread_##isa(const Spread& s) { spread(s); }                                   \
  void mean_##isa(const MeanRows& s) { mean(s); }                                     \
  void leaky_relu_##isa(const Places& places, float a) { leaky_relu(places, a); }     \
  void silu_##isa(const Places& places, float a) { silu(places, a); }                 \
  void hard_swish_##isa(const Places& places, float a) { hard_swish(places, a); }     \
  void sigmoid_##isa(const Places& places, float a) { sigmoid(places, a); }           \
  void hard_sigmoid_##isa(const Places& places, float a) { hard_sigmoid(places, a); } \
  void gelu_##isa(const Places& places, float a) { gelu(places, a); }                 \
  }
