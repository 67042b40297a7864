// Random convolutions through the C API against the textbook's loop, on every instruction set,
// serially and on threads.
#include "tests/problem.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

void check_conv(uint64_t seed, ThreadPool& pool, const std::vector<std::string>& isas) {
  Random random(seed);
  Problem problem(random, 14);
  context = problem.text() + " seed " + std::to_string(seed);
  Guarded<float> want(problem.output_floats(), random);
  problem.reference(want);
  for (const std::string& isa : isas) {
    const ConvHandle conv = problem.create(isa.c_str());
    context =
        problem.text() + " seed " + std::to_string(seed) + " " + semisparse_conv_kernel(conv.get());
    for (const bool threads : {false, true}) {
      Guarded<float> got(want.size(), random);
      for (size_t i = 0; i < got.size(); ++i) got[i] = -77;  // what is forgotten shows
      CHECK_OK(semisparse_conv_run(conv.get(), problem.x->data(), problem.batch, problem.height,
                                   problem.width, problem.gate ? problem.gate->data() : nullptr,
                                   problem.residual ? problem.residual->data() : nullptr,
                                   got.data(), threads ? ThreadPool::parallel_for : nullptr,
                                   threads ? &pool : nullptr));
      check_output(problem, got, want);
    }
  }
}

}  // namespace

int main() {
  ThreadPool pool(3);
  const std::vector<std::string> isas = usable_isas();
  for (size_t i = 0; i < rounds(1000); ++i) check_conv(i, pool, isas);
}
