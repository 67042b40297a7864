// Every depthwise kernel against the reference, on random strips.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "kernels/dwconv/dwconv.h"
#include "kernels/dwconv/reference.h"
#include "tests/check.h"
#include "tests/guarded.h"
#include "tests/operands.h"
#include "tests/usable.h"

using namespace semisparse;
using test::Guarded;
using test::Random;

namespace {

struct Listed {
  const char* isa;
  const char* name;
  dwconv::Function run;
};

const Listed kKernels[] = {
#define SEMISPARSE_DWCONV(isa, most_taps_alike) {#isa, "dwconv_" #isa, dwconv::dwconv_##isa},
#include "kernels/dwconv/kernels.inc"
#undef SEMISPARSE_DWCONV
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Positions of a plane that a filter goes over, in its order with some left out, or in none.
struct Grid {
  Grid(const dwconv::Strip& strip, size_t pixel, Random& random)
      : height(random.size(1, 14)), width(random.size(1, random.chance(0.1) ? 40 : 14)) {
    const size_t stride = random.size(1, random.chance(0.8) ? 2 : 3);
    const size_t dilation = random.size(1, random.chance(0.8) ? 1 : 3);
    const size_t pad_y = random.size(0, strip.height * dilation);
    const size_t pad_x = random.size(0, strip.width * dilation);
    row_step = static_cast<std::ptrdiff_t>(dilation * width * pixel);
    column_step = static_cast<std::ptrdiff_t>(dilation * pixel);
    const auto inside = [&](size_t at, size_t tap, size_t pad, size_t size) {
      return at + tap * dilation >= pad && at + tap * dilation < pad + size;
    };
    const auto range = [&](size_t at, size_t taps, size_t pad, size_t size) {
      uint32_t begin = 0;
      while (begin < taps && !inside(at, begin, pad, size)) ++begin;
      uint32_t end = begin;
      while (end < taps && inside(at, end, pad, size)) ++end;
      return std::pair{begin, end};
    };
    const double left_out = random.chance(0.3) ? 0 : random.chance(0.5) ? 0.3 : 0.6;
    for (size_t y = 0; y < height + pad_y; y += stride) {
      for (size_t x = 0; x < width + pad_x; x += stride) {
        if (random.chance(left_out)) continue;
        const auto [top, bottom] = range(y, strip.height, pad_y, height);
        const auto [left, right] = range(x, strip.width, pad_x, width);
        windows.push_back({top, bottom, left, right});
        origins.push_back((static_cast<std::ptrdiff_t>(y * width + x) -
                           static_cast<std::ptrdiff_t>(pad_y * width + pad_x)) *
                          static_cast<std::ptrdiff_t>(pixel));
      }
    }
    if (origins.empty()) {
      windows.push_back({0, 0, 0, 0});
      origins.push_back(0);
    }
    if (random.chance(0.2)) {
      for (size_t i = origins.size() - 1; i > 0; --i) {
        const size_t j = random.size(0, i);
        std::swap(origins[i], origins[j]);
        std::swap(windows[i], windows[j]);
      }
    }
  }

  bool is_whole(const dwconv::Strip& strip) const {
    return std::all_of(windows.begin(), windows.end(), [&](const dwconv::Window& w) {
      return w.top == 0 && w.left == 0 && w.bottom == strip.height && w.right == strip.width;
    });
  }

  // Only those all of whose taps are inside, if there are any.
  void keep_whole(const dwconv::Strip& strip) {
    Grid kept = *this;
    kept.windows.clear();
    kept.origins.clear();
    for (size_t i = 0; i < origins.size(); ++i) {
      const dwconv::Window& w = windows[i];
      if (w.top != 0 || w.left != 0 || w.bottom != strip.height || w.right != strip.width) continue;
      kept.windows.push_back(w);
      kept.origins.push_back(origins[i]);
    }
    if (!kept.origins.empty()) *this = kept;
  }

  size_t height, width;
  std::ptrdiff_t row_step, column_step;
  std::vector<dwconv::Window> windows;
  std::vector<std::ptrdiff_t> origins;
};

void check_strip(const Listed& kernel, uint64_t seed) {
  Random random(seed);
  dwconv::Strip strip{};
  strip.width = random.chance(0.8) ? 3 + 2 * random.size(0, 2) : random.size(1, 8);
  strip.height = random.chance(0.6) ? strip.width : random.size(1, 8);
  if (random.chance(0.02)) strip.height = strip.width = 17;
  strip.channels = random.size(1, random.chance(0.3) ? 150 : 20);
  const size_t blocks = (strip.channels + dwconv::kBlock - 1) / dwconv::kBlock;
  strip.ldy = strip.channels + (random.chance(0.5) ? 0 : random.size(1, 9));
  const size_t pixel = strip.channels + (random.chance(0.5) ? 0 : random.size(1, 5));
  Grid grid(strip, pixel, random);
  if (random.chance(0.3)) grid.keep_whole(strip);
  strip.m = grid.origins.size();
  strip.row_step = grid.row_step;
  strip.column_step = grid.column_step;
  test::context = std::string(kernel.name) + " m=" + std::to_string(strip.m) +
                  " filter=" + std::to_string(strip.height) + "x" + std::to_string(strip.width) +
                  " channels=" + std::to_string(strip.channels) + " seed=" + std::to_string(seed);

  const bool finite = random.chance(0.7);
  Guarded<float> input((grid.height * grid.width - 1) * pixel + strip.channels, random);
  test::fill(input, random, finite);
  std::vector<const float*> rows;
  for (const std::ptrdiff_t origin : grid.origins) rows.push_back(input.data() + origin);
  strip.rows = rows.data();
  Guarded<float> zeros(strip.channels, random);
  std::fill_n(zeros.data(), strip.channels, 0.0f);
  if (!grid.is_whole(strip) || random.chance(0.5)) {
    strip.windows = grid.windows.data();
    strip.zeros = zeros.data();
  }

  // Each tap by itself: in its place, in that of another position, or nowhere, which is zero.
  std::vector<uint32_t> taps;
  Guarded<float> listed(input.size() + strip.channels, random);
  if (random.chance(0.4)) {
    const size_t count = strip.height * strip.width;
    const double moved = random.chance(0.5) ? 0 : 0.4;
    for (size_t i = 0; i < strip.m; ++i) {
      for (size_t t = 0; t < count; ++t) {
        const dwconv::Window& w = grid.windows[i];
        const size_t ky = t / strip.width;
        const size_t kx = t % strip.width;
        const bool inside = ky >= w.top && ky < w.bottom && kx >= w.left && kx < w.right;
        std::ptrdiff_t place = grid.origins[i] + static_cast<std::ptrdiff_t>(ky) * strip.row_step +
                               static_cast<std::ptrdiff_t>(kx) * strip.column_step;
        if (random.chance(moved)) {
          place = static_cast<std::ptrdiff_t>(random.size(0, grid.height * grid.width - 1) * pixel);
        }
        taps.push_back(static_cast<uint32_t>(inside ? place : input.size()));
      }
    }
    // The zeros lie behind the input.
    std::copy_n(input.data(), input.size(), listed.data());
    std::fill_n(listed.data() + input.size(), strip.channels, 0.0f);
    strip.x = listed.data();
    strip.taps = taps.data();
    strip.rows = nullptr;
    strip.windows = nullptr;
  }

  Guarded<float> weights(blocks * strip.height * strip.width * dwconv::kBlock, random);
  test::fill(weights, random, true);
  strip.weights = weights.data();
  Guarded<float> bias((strip.channels + 15) / 16 * 16, random);  // whole vectors of any kernel
  test::fill(bias, random, true);
  strip.bias = bias.data();

  const std::vector<uint32_t> places = test::destinations(strip.m, random);
  strip.dests = places.data();
  const size_t plane = (places.size() - 1) * strip.ldy + strip.channels;
  Guarded<float> residual(plane, random);
  test::fill(residual, random, finite);
  if (random.chance(0.5)) strip.residual = residual.data();
  strip.lo = random.chance(0.5) ? -kInfinity : 0;
  strip.hi = random.chance(0.7) ? kInfinity : 6;

  Guarded<float> got(plane, random);
  Guarded<float> want(plane, random);
  test::fill(got, random, true);
  test::copy(got, want);
  strip.y = got.data();
  kernel.run(strip);
  strip.y = want.data();
  dwconv::reference(strip);
  test::check_same(got, want);
}

}  // namespace

int main() {
  test::for_each_usable(kKernels, [](const Listed& kernel) {
    for (size_t i = 0; i < test::rounds(1000); ++i) check_strip(kernel, i);
  });
}
