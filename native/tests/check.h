// What the native tests need of a test framework.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace semisparse::test {

// The case at hand, printed where a check fails.
inline thread_local std::string context;

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n  case: %s\n", file, line, what.c_str(), context.c_str());
  std::fflush(stderr);
  std::_Exit(1);  // other threads may still be running
}

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) semisparse::test::fail(__FILE__, __LINE__, "not " #condition); \
  } while (false)

#define CHECK_EQUAL(a, b)                                                                     \
  do {                                                                                        \
    const auto a_ = (a);                                                                      \
    const auto b_ = (b);                                                                      \
    if (!semisparse::test::same(a_, b_)) {                                                    \
      semisparse::test::fail(__FILE__, __LINE__,                                              \
                             #a " is " + std::to_string(a_) + ", not " + std::to_string(b_)); \
    }                                                                                         \
  } while (false)

template <typename T>
bool same(T a, T b) {
  return a == b;
}
// NaN is a value like any other here.
inline bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// How many rounds of a random test to run: the usual number times $SEMISPARSE_TEST_EFFORT, which
// is below 1 where an emulator or a sanitizer makes a round slow.
inline size_t rounds(size_t usual) {
  const char* effort = std::getenv("SEMISPARSE_TEST_EFFORT");
  if (effort == nullptr) return usual;
  const double scaled = static_cast<double>(usual) * std::atof(effort);
  return scaled > 1 ? static_cast<size_t>(scaled) : 1;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // Uniform in [lo, hi].
  int64_t between(int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(engine_);
  }
  size_t size(size_t lo, size_t hi) {
    return std::uniform_int_distribution<size_t>(lo, hi)(engine_);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(engine_); }

  // An eighth of a small integer. Products and sums of a few thousand of these are exact in
  // float32, so a kernel must give the same bits as a reference in double precision, in whatever
  // order it sums and with or without fused multiply-adds.
  float value() { return static_cast<float>(between(-64, 64)) / 8; }
  // The same, now and then a value that must come through as it is.
  float any_value() {
    if (!chance(0.001)) return value();
    return chance(0.5) ? NAN : chance(0.5) ? INFINITY : -INFINITY;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace semisparse::test
