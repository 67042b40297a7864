// Every indirect-GEMM kernel against the reference, on random tiles.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/igemm/igemm.h"
#include "kernels/igemm/listed.h"
#include "kernels/igemm/reference.h"
#include "tests/check.h"
#include "tests/guarded.h"
#include "tests/operands.h"
#include "tests/usable.h"

using namespace semisparse;
using igemm::Listed;
using igemm::Tile;
using test::Guarded;
using test::Random;

namespace {

// Floats in the last vector of a panel: the narrowest panel is one vector wide, and what is no
// multiple of it has a tail.
size_t last_lanes(const Listed& kernel) {
  size_t narrowest = kernel.nr;
  for (const Listed& other : igemm::kListed) {
    if (std::strcmp(other.isa, kernel.isa) == 0) narrowest = std::min(narrowest, other.nr);
  }
  return kernel.nr % narrowest == 0 ? narrowest : kernel.nr % narrowest;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_tile(const Listed& kernel, size_t m, uint64_t seed) {
  Random random(seed);
  const size_t nr = kernel.nr;
  Tile tile{};
  tile.m = m;
  tile.taps = random.size(1, 9);
  tile.channels = random.size(1, random.chance(0.2) ? 70 : 13);
  tile.row_offset = random.chance(0.5) ? 0 : random.size(1, 9);
  tile.n = random.chance(0.5) ? nr : random.size(nr - last_lanes(kernel) + 1, nr);
  tile.ldy = tile.n + (random.chance(0.5) ? 0 : random.size(1, 9));
  test::context = std::string(kernel.name) + " m=" + std::to_string(m) +
                  " taps=" + std::to_string(tile.taps) +
                  " channels=" + std::to_string(tile.channels) + " n=" + std::to_string(tile.n) +
                  " seed=" + std::to_string(seed);

  const bool finite = random.chance(0.7);
  const size_t reach = tile.row_offset + tile.channels;
  Guarded<float> input(reach + random.size(0, 200), random);
  test::fill(input, random, finite);
  const test::Rows rows(input, m, tile.taps, reach, random);
  tile.rows = rows.pointers.data();
  tile.offsets = rows.offsets();

  Guarded<float> weights(tile.taps * tile.channels * nr, random);
  test::fill(weights, random, true);
  tile.weights = weights.data();
  tile.init_stride = random.chance(0.5) ? nr : 0;
  Guarded<float> init(tile.init_stride == 0 ? nr : m * nr, random);
  test::fill(init, random, finite);
  tile.init = init.data();

  const std::vector<uint32_t> places = test::destinations(m, random);
  tile.dests = places.data();
  const size_t plane = (places.size() - 1) * tile.ldy + tile.n;
  Guarded<float> residual(plane, random);
  test::fill(residual, random, finite);
  if (random.chance(0.5)) tile.residual = residual.data();
  tile.lo = random.chance(0.5) ? -kInfinity : 0;
  tile.hi = random.chance(0.7) ? kInfinity : 6;

  // What the kernel must not write is compared too, so both outputs start from the same values.
  const bool park = random.chance(0.2);
  Guarded<float> got(park ? m * nr : plane, random);
  Guarded<float> want(got.size(), random);
  test::fill(got, random, true);
  test::copy(got, want);
  (park ? tile.park : tile.y) = got.data();
  kernel.run(tile);
  (park ? tile.park : tile.y) = want.data();
  igemm::reference(tile, nr);
  test::check_same(got, want);
}

}  // namespace

int main() {
  test::for_each_usable(igemm::kListed, [](const Listed& kernel) {
    for (size_t m = 1; m <= 3 * kernel.mr; ++m) {
      for (size_t i = 0; i < test::rounds(100); ++i) check_tile(kernel, m, m * 1000003 + i);
    }
  });
}
