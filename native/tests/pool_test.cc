// Random pools through the C API against the textbook's loop, on every instruction set.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/api.h"
#include "tests/guarded.h"
#include "tests/thread_pool.h"

using namespace semisparse::test;

namespace {

struct Problem {
  semisparse_pool_desc desc{};
  int64_t batch, height, width, channels, out[2];

  explicit Problem(Random& random);
  void reference(Guarded<float>& x, Guarded<float>& y) const;
};

// Number of windows along one axis, by trying them: the last one starts inside the input or its
// leading padding, and ends inside the padded input unless ceil_mode lets it hang over.
int64_t windows(const semisparse_pool_desc& d, int axis, int64_t size) {
  int64_t n = 0;
  for (;; ++n) {
    const int64_t start = n * d.strides[axis];  // in the padded input
    const int64_t end = start + (d.kernel[axis] - 1) * d.dilations[axis] + 1;
    const int64_t room = size + d.pads[axis] + d.pads[axis + 2];
    if (end > room && (d.ceil_mode == 0 || end - room >= d.strides[axis])) break;
    if (end > room && start >= size + d.pads[axis]) break;
  }
  return n;
}

Problem::Problem(Random& random) {
  desc.kind = random.chance(0.5)   ? SEMISPARSE_MAX_POOL
              : random.chance(0.7) ? SEMISPARSE_AVERAGE_POOL
                                   : SEMISPARSE_L2_POOL;
  desc.ceil_mode = random.chance(0.5) ? 1 : 0;
  desc.count_include_pad = desc.kind == SEMISPARSE_AVERAGE_POOL && random.chance(0.5) ? 1 : 0;
  batch = random.between(1, 3);
  channels = random.between(1, random.chance(0.2) ? 600 : 40);
  int64_t size[2];
  for (int i = 0; i < 2; ++i) {
    desc.kernel[i] = random.between(1, 4);
    desc.strides[i] = random.between(1, 4);
    desc.dilations[i] =
        desc.kind == SEMISPARSE_MAX_POOL && random.chance(0.3) ? random.between(1, 3) : 1;
    desc.pads[i] = random.between(0, desc.kernel[i] / 2);
    desc.pads[i + 2] = random.between(0, desc.kernel[i] / 2);
    size[i] = random.between((desc.kernel[i] - 1) * desc.dilations[i] + 1, 14);
    if (random.chance(0.1)) {  // global
      desc.kernel[i] = size[i];
      desc.dilations[i] = 1;
      desc.pads[i] = desc.pads[i + 2] = 0;
    }
  }
  height = size[0];
  width = size[1];
  for (int i = 0; i < 2; ++i) out[i] = windows(desc, i, size[i]);
}

void Problem::reference(Guarded<float>& x, Guarded<float>& y) const {
  size_t at = 0;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t position = 0; position < out[0] * out[1]; ++position) {
      for (int64_t c = 0; c < channels; ++c, ++at) {
        double sum = 0;
        double squares = 0;
        double best = -INFINITY;
        int64_t inside = 0;
        int64_t padded = 0;
        for (int64_t ky = 0; ky < desc.kernel[0]; ++ky) {
          for (int64_t kx = 0; kx < desc.kernel[1]; ++kx) {
            const int64_t iy =
                position / out[1] * desc.strides[0] - desc.pads[0] + ky * desc.dilations[0];
            const int64_t ix =
                position % out[1] * desc.strides[1] - desc.pads[1] + kx * desc.dilations[1];
            if (iy < height + desc.pads[2] && ix < width + desc.pads[3]) ++padded;
            if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
            ++inside;
            const double v =
                x[static_cast<size_t>(((n * height + iy) * width + ix) * channels + c)];
            sum += v;
            squares += v * v;
            if (v > best || std::isnan(v)) best = v;
          }
        }
        const int64_t count = desc.count_include_pad != 0 ? padded : inside;
        const double average = sum / static_cast<double>(count);
        y[at] = static_cast<float>(desc.kind == SEMISPARSE_MAX_POOL  ? best
                                   : desc.kind == SEMISPARSE_L2_POOL ? std::sqrt(squares)
                                                                     : average);
      }
    }
  }
}

void check_pool(uint64_t seed, ThreadPool& pool, const std::vector<std::string>& isas) {
  Random random(seed);
  const Problem p(random);
  context = "seed " + std::to_string(seed);
  Guarded<float> x(static_cast<size_t>(p.batch * p.height * p.width * p.channels), random);
  fill(x, random, random.chance(0.7));
  int64_t out[2] = {0, 0};
  CHECK_OK(semisparse_pool_output_size(&p.desc, p.height, p.width, &out[0], &out[1]));
  CHECK_EQUAL(out[0], p.out[0]);
  CHECK_EQUAL(out[1], p.out[1]);
  Guarded<float> want(static_cast<size_t>(p.batch * out[0] * out[1] * p.channels), random);
  p.reference(x, want);
  for (const std::string& isa : isas) {
    context = "seed " + std::to_string(seed) + " " + isa;
    Guarded<float> got(want.size(), random);
    const bool threads = random.chance(0.5);
    CHECK_OK(semisparse_pool_run(&p.desc, x.data(), p.batch, p.height, p.width, p.channels,
                                 got.data(), isa.c_str(),
                                 threads ? ThreadPool::parallel_for : nullptr, &pool));
    for (size_t i = 0; i < got.size(); ++i) {
      // An average multiplies by the rounded inverse of the count: three roundings.
      if (same(got[i], want[i]) || std::abs(got[i] - want[i]) <= 2e-7f * std::abs(want[i]))
        continue;
      fail(__FILE__, __LINE__,
           "element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", not " +
               std::to_string(want[i]));
    }
  }
}

}  // namespace

int main() {
  ThreadPool pool(3);
  const std::vector<std::string> isas = usable_isas();
  for (size_t i = 0; i < rounds(800); ++i) check_pool(i, pool, isas);
}
