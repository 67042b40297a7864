// One handle run from several threads at once, each with its own way of parallelism.
// ThreadSanitizer says whether they share what they should not.
#include <thread>

#include "tests/problem.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

void check_concurrent(uint64_t seed) {
  Random random(seed);
  Problem problem(random, 12);
  context = problem.text() + " seed " + std::to_string(seed);
  Guarded<float> want(problem.output_floats(), random);
  problem.reference(want);
  const ConvHandle conv = problem.create(nullptr);
  const std::string text = context;

  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      context = text;
      Random own(seed * 4 + i);
      ThreadPool pool(2);
      for (int run = 0; run < 3; ++run) {
        Guarded<float> got(want.size(), own);
        const bool parallel = own.chance(0.5);
        CHECK_OK(semisparse_conv_run(conv.get(), problem.x->data(), problem.batch, problem.height,
                                     problem.width, problem.gate ? problem.gate->data() : nullptr,
                                     problem.residual ? problem.residual->data() : nullptr,
                                     got.data(), parallel ? ThreadPool::parallel_for : nullptr,
                                     &pool));
        check_output(problem, got, want);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// The error belongs to the thread that caused it.
void check_errors_apart() {
  context = "last error";
  CHECK(semisparse_source_map(nullptr, 1, 1, SEMISPARSE_FILL_BIAS, nullptr) ==
        SEMISPARSE_INVALID_ARGUMENT);
  const std::string mine = semisparse_last_error();
  std::thread([] {
    double flops;
    CHECK(semisparse_measure_fma("none", 1, &flops) == SEMISPARSE_UNSUPPORTED);
  }).join();
  CHECK(!mine.empty());
  CHECK(mine == semisparse_last_error());
}

}  // namespace

int main() {
  for (size_t i = 0; i < rounds(100); ++i) check_concurrent(i);
  check_errors_apart();
}
