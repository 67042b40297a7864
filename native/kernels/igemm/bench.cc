// Every indirect-GEMM kernel alone, at every height: one tile of a 3x3 layer with 64 channels, its
// weights in the second-level cache, again and again. What a tile size is worth before packing,
// tasks and memory have their say; kernel_bench times whole layers.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <vector>

#include "core/buffer.h"
#include "core/isa.h"
#include "core/measure.h"
#include "kernels/igemm/listed.h"
#include "tests/usable.h"

using namespace semisparse;

namespace {

constexpr size_t kTaps = 9;
constexpr size_t kChannels = 64;

void bench(const igemm::Listed& kernel) {
  const std::vector<float> input(kernel.mr * kTaps * kChannels, 0.5f);
  const Buffer weights = make_buffer(kTaps * kChannels * kernel.nr);  // aligned, as a layer's are
  std::fill_n(weights.get(), kTaps * kChannels * kernel.nr, 0.25f);
  const std::vector<float> init(kernel.nr, 0.0f);
  std::vector<float> y(kernel.mr * kernel.nr);
  std::vector<const float*> rows;
  for (size_t i = 0; i < kernel.mr * kTaps; ++i) rows.push_back(input.data() + i * kChannels);
  std::vector<uint32_t> dests;
  for (size_t i = 0; i < kernel.mr; ++i) dests.push_back(static_cast<uint32_t>(i));

  igemm::Tile tile{};
  tile.taps = kTaps;
  tile.channels = kChannels;
  tile.rows = rows.data();
  tile.weights = weights.get();
  tile.init = init.data();
  tile.dests = dests.data();
  tile.y = y.data();
  tile.ldy = tile.n = kernel.nr;
  tile.lo = 0;
  tile.hi = std::numeric_limits<float>::infinity();
  for (tile.m = kernel.mr; tile.m > 0; --tile.m) {
    const double flops = 2.0 * static_cast<double>(tile.m * kernel.nr * kTaps * kChannels);
    const auto runs = static_cast<size_t>(2e7 / flops) + 1;
    double best = 0;
    double peak = 0;
    for (int round = 0; round < 20; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (size_t i = 0; i < runs; ++i) kernel.run(tile);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, flops * static_cast<double>(runs) / seconds.count());
      peak = std::max(peak, measure_fma(find_isa(kernel.isa), 0.0005));
    }
    std::printf("%-20s m %zu %9.1f GFLOP/s %7.3f of peak\n", kernel.name, tile.m, best * 1e-9,
                best / peak);
  }
}

}  // namespace

int main() { test::for_each_usable(igemm::kListed, bench); }
