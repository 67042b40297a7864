// Every FMA loop does the work that it says it did.
#include <cmath>

#include "kernels/peak/peak.h"
#include "tests/check.h"
#include "tests/usable.h"

using namespace semisparse;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  peak::Function fma;
};

const Listed kKernels[] = {
#define SEMISPARSE_PEAK(isa) {#isa, "fma_" #isa, peak::fma_##isa},
#include "kernels/peak/kernels.inc"
#undef SEMISPARSE_PEAK
};

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    test::context = kernel.name;
    constexpr size_t kTurns = 100;
    constexpr float kSink = 3;
    float sink = kSink;
    const double flops = kernel.fma(kTurns, &sink);
    // After a hundred turns of acc / 2 + sink every accumulator has settled at twice the sink, and
    // what comes back is the sum over the chains; that is how many there were.
    const double chains = sink / (2 * kSink);
    CHECK_EQUAL(chains, std::floor(chains));
    CHECK(chains >= 8);  // fewer would not hide the latency of two pipes
    const double lanes = flops / (2 * kTurns * chains);
    CHECK(lanes == 4 || lanes == 8 || lanes == 16);
    CHECK_EQUAL(kernel.fma(2 * kTurns, &sink), 2 * flops);
  });
}
