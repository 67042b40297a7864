#include "core/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

#include "core/buffer.h"
#include "core/error.h"
#include "core/select.h"

namespace semisparse {
namespace {

// Repeats `work`, which returns what it did, in slices of about a millisecond for the given time
// and returns the best rate: on a shared machine the peak is what the undisturbed slices reach.
template <typename Work>
double best_rate(double seconds, const Work& work) {
  using Clock = std::chrono::steady_clock;
  if (!(seconds > 0 && seconds <= 60)) {
    invalid("a measurement of " + std::to_string(seconds) +
            " seconds is not possible; choose between 0 and 60");
  }
  const Clock::time_point start = Clock::now();
  double best = 0;
  Clock::time_point before = start;
  do {
    const double done = work();
    const Clock::time_point after = Clock::now();
    best = std::max(best, done / std::chrono::duration<double>(after - before).count());
    before = after;
  } while (std::chrono::duration<double>(before - start).count() < seconds);
  return best;
}

}  // namespace

double measure_fma(const IsaInfo& isa, double seconds) {
  const peak::Function fma = peak_kernel(isa.isa).fma;
  float sink = 1;
  constexpr size_t kTurns = 200000;
  return best_rate(seconds, [&] { return fma(kTurns, &sink); });
}

double measure_copy(size_t bytes, double seconds) {
  const size_t floats = bytes / sizeof(float);
  if (floats == 0 || bytes > (size_t{1} << 34)) {
    invalid("a copy of " + std::to_string(bytes) +
            " bytes cannot be measured; choose between 4 bytes and 16 GiB");
  }
  const Buffer from = make_buffer(floats);
  const Buffer to = make_buffer(floats);
  std::fill_n(from.get(), floats, 1.0f);
  const size_t copies = std::max<size_t>(1, (size_t{8} << 20) / (floats * sizeof(float)));
  return best_rate(seconds, [&] {
    for (size_t i = 0; i < copies; ++i) {
      std::memcpy(to.get(), from.get(), floats * sizeof(float));
      // Each copy must happen: the compiler may assume nothing about what was written.
      __asm__ volatile("" : : "r"(to.get()) : "memory");
    }
    return 2.0 * static_cast<double>(copies * floats * sizeof(float));
  });
}

}  // namespace semisparse
