// Times the convolutions of a network one by one, at several sparsities, next to what the machine
// can do in the same minute.
//
//     kernel_bench native/bench/shapes/resnet18.txt --sparsity 0 0.3 --threads 2
//
// GFLOP/s count the computed positions only (a fused multiply-add is two), so a sparsity that is
// fully turned into speed leaves them as they are. `peak` is their fraction of the FMA rate of as
// many threads, measured between the timings because the clock of a shared machine changes with
// the minute. Times and rates are the best of some rounds over all sparsities in turn: what others
// take of the machine in between is not the kernel's.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <new>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/api.h"
#include "tests/thread_pool.h"

using semisparse::test::ConvHandle;
using semisparse::test::ThreadPool;

namespace {

constexpr const char* kUsage =
    "usage: kernel_bench SHAPES... [options]\n"
    "  SHAPES             text files; a line is: name H W C_in C_out kernel stride pad group\n"
    "                     activation residual(0 or 1)\n"
    "  --sparsity S...    sparsities, each in [0, 1); default 0 0.3\n"
    "  --fill FILL        bias, nearest (default) or mean\n"
    "  --isa ISA          instruction set; default $SEMISPARSE_ISA or the best\n"
    "  --threads N        default 1\n"
    "  --cold MIB         read a buffer of this size before every run, so that weights come from\n"
    "                     memory as in a network larger than the cache; default 0, weights warm\n"
    "  --seconds S        time for each layer and sparsity; default 0.2\n"
    "  --batch N          images; default 1\n"
    "  --seed N           of masks and values; default 0\n"
    "  --csv              comma-separated values\n";

struct Options {
  std::vector<std::string> shapes;
  std::vector<double> sparsities{0, 0.3};
  std::string fill = "nearest";
  std::string isa;
  size_t threads = 1;
  size_t cold_mib = 0;
  double seconds = 0.2;
  int64_t batch = 1;
  uint64_t seed = 0;
  bool csv = false;
};

struct Layer {
  std::string name;
  int64_t height, width;
  semisparse_conv_desc desc;
  bool residual;
};

// Cache lines, as in a session of ONNX Runtime: where every vector crosses two lines a depthwise
// layer takes up to twice as long.
template <typename T>
struct Aligned {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
using Floats = std::vector<float, Aligned<float>>;

// One layer at one sparsity.
struct Candidate {
  double sparsity;
  ConvHandle conv;
  double flops;
  double seconds;  // best so far
};

struct Result {
  double sparsity, flops, seconds, fraction;
};

[[noreturn]] void refuse(const std::string& message) { throw std::runtime_error(message); }

void check(semisparse_status status) {
  if (status != SEMISPARSE_OK) refuse(semisparse_last_error());
}

double number(const std::string& option, const std::string& text, double lowest, double highest) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= lowest && value <= highest)) {
    std::ostringstream range;
    range << "between " << lowest << " and " << highest;
    refuse(option + " is '" + text + "'; give a number " + range.str());
  }
  return value;
}

Options parse(const std::vector<std::string>& args) {
  Options o;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& option = args[i];
    const auto value = [&] {
      if (i + 1 == args.size()) refuse(option + " needs a value; see kernel_bench --help");
      return args[++i];
    };
    if (option == "--sparsity") {
      o.sparsities = {number(option, value(), 0, 0.999)};
      while (i + 1 < args.size() &&
             args[i + 1].find_first_not_of("0123456789.") == std::string::npos) {
        o.sparsities.push_back(number(option, value(), 0, 0.999));
      }
    } else if (option == "--fill") {
      o.fill = value();
      if (o.fill != "bias" && o.fill != "nearest" && o.fill != "mean") {
        refuse("--fill is '" + o.fill + "'; choose bias, nearest or mean");
      }
    } else if (option == "--isa") {
      o.isa = value();
    } else if (option == "--threads") {
      o.threads = static_cast<size_t>(number(option, value(), 1, 1024));
    } else if (option == "--cold") {
      o.cold_mib = static_cast<size_t>(number(option, value(), 0, 65536));
    } else if (option == "--seconds") {
      o.seconds = number(option, value(), 0.001, 3600);
    } else if (option == "--batch") {
      o.batch = static_cast<int64_t>(number(option, value(), 1, 4096));
    } else if (option == "--seed") {
      o.seed = static_cast<uint64_t>(number(option, value(), 0, 1e15));
    } else if (option == "--csv") {
      o.csv = true;
    } else if (option.compare(0, 1, "-") == 0) {
      refuse(option + " is no option; see kernel_bench --help");
    } else {
      o.shapes.push_back(option);
    }
  }
  if (o.shapes.empty()) refuse("no shapes; give a file of native/bench/shapes");
  return o;
}

semisparse_activation activation(const std::string& name) {
  static const char* const kNames[] = {"identity",   "relu",         "clip",
                                       "leaky_relu", "silu",         "hard_swish",
                                       "sigmoid",    "hard_sigmoid", "gelu"};
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) refuse("activation '" + name + "' is unknown");
  return static_cast<semisparse_activation>(found - std::begin(kNames));
}

std::vector<Layer> read_layers(const std::string& path) {
  std::ifstream file(path);
  if (!file) refuse(path + " cannot be read; give a file of native/bench/shapes");
  std::vector<Layer> layers;
  std::string line;
  for (int at = 1; std::getline(file, line); ++at) {
    std::istringstream fields(line.substr(0, line.find('#')));
    Layer layer{};
    if (!(fields >> layer.name)) continue;
    semisparse_conv_desc& d = layer.desc;
    int64_t kernel, stride, pad;
    std::string act;
    fields >> layer.height >> layer.width >> d.in_channels >> d.out_channels >> kernel >> stride >>
        pad >> d.group >> act >> layer.residual;
    if (!fields || !(fields >> std::ws).eof()) {
      refuse(path + ", line " + std::to_string(at) + ": '" + line +
             "' is not name H W C_in C_out kernel stride pad group activation residual");
    }
    for (int i = 0; i < 2; ++i) {
      d.kernel[i] = kernel;
      d.strides[i] = stride;
      d.dilations[i] = 1;
      d.pads[i] = d.pads[i + 2] = pad;
    }
    d.activation = activation(act);
    d.activation_a = d.activation == SEMISPARSE_LEAKY_RELU ? 0.01f : 0.0f;
    d.activation_b = 6;
    layers.push_back(layer);
  }
  if (layers.empty()) refuse(path + " has no layer; see native/bench/shapes for the format");
  return layers;
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        pool_(options.threads),
        random_(options.seed),
        cold_((options.cold_mib << 20) / sizeof(float), 1.0f) {
    const char* isa = semisparse_isa();
    if (options_.isa.empty() && isa == nullptr) refuse(semisparse_last_error());
    if (options_.isa.empty()) options_.isa = isa;
  }

  std::vector<Result> layer(const Layer& layer);
  const std::string& isa() const { return options_.isa; }

 private:
  using Clock = std::chrono::steady_clock;

  Floats values(int64_t n) {
    Floats v(static_cast<size_t>(n));
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& x : v) x = uniform(random_);
    return v;
  }

  Candidate candidate(const Layer& layer, const Floats& weights, const Floats& bias,
                      double sparsity, int64_t out[2]);

  // FLOP/s of all threads at once.
  double peak() {
    std::vector<double> rates(options_.threads);
    struct Arg {
      const char* isa;
      double* rates;
    } arg{options_.isa.c_str(), rates.data()};
    pool_.run(
        options_.threads,
        [](void* p, size_t i) {
          const auto* a = static_cast<Arg*>(p);
          check(semisparse_measure_fma(a->isa, 0.003, &a->rates[i]));
        },
        &arg);
    double sum = 0;
    for (const double rate : rates) sum += rate;
    return sum;
  }

  void read(const Floats& buffer) {
    constexpr size_t kLine = 64 / sizeof(float);
    for (size_t i = 0; i < buffer.size(); i += kLine) sink_ = sink_ + buffer[i];
  }

  // The weights leave the cache; the input, which the layer before has just written, is back in it.
  void cool(const Floats& x) {
    read(cold_);
    read(x);
  }

  Options options_;
  ThreadPool pool_;
  std::mt19937_64 random_;
  Floats cold_;
  volatile float sink_ = 0;
};

Candidate Bench::candidate(const Layer& layer, const Floats& weights, const Floats& bias,
                           double sparsity, int64_t out[2]) {
  const semisparse_conv_desc& d = layer.desc;
  const auto plane = static_cast<size_t>(out[0] * out[1]);
  std::vector<uint8_t> mask(plane, 1);
  const auto masked =
      std::min(plane - 1, static_cast<size_t>(std::llround(sparsity * static_cast<double>(plane))));
  std::fill_n(mask.begin(), masked, uint8_t{0});
  std::shuffle(mask.begin(), mask.end(), random_);
  std::vector<int32_t> source(2 * plane);
  std::vector<float> weight(plane);
  const bool means = options_.fill == "mean";
  if (means) {
    check(semisparse_mean_sources(mask.data(), out[0], out[1], source.data(), weight.data()));
  } else {
    const semisparse_fill fill =
        options_.fill == "bias" ? SEMISPARSE_FILL_BIAS : SEMISPARSE_FILL_NEAREST;
    check(semisparse_source_map(mask.data(), out[0], out[1], fill, source.data()));
  }
  semisparse_conv* conv = nullptr;
  check(semisparse_conv_create(
      &d, weights.data(), bias.data(), masked == 0 ? nullptr : source.data(),
      means && masked > 0 ? weight.data() : nullptr, out[0], out[1], options_.isa.c_str(), &conv));
  const double flops = 2.0 * static_cast<double>(plane - masked) *
                       static_cast<double>(options_.batch * d.out_channels) *
                       static_cast<double>(d.in_channels / d.group * d.kernel[0] * d.kernel[1]);
  return {sparsity, ConvHandle(conv), flops, std::numeric_limits<double>::infinity()};
}

std::vector<Result> Bench::layer(const Layer& layer) {
  const semisparse_conv_desc& d = layer.desc;
  const Floats weights =
      values(d.out_channels * (d.in_channels / d.group) * d.kernel[0] * d.kernel[1]);
  const Floats bias = values(d.out_channels);
  int64_t out[2];
  {
    semisparse_conv* dense = nullptr;
    check(semisparse_conv_create(&d, weights.data(), bias.data(), nullptr, nullptr, 0, 0,
                                 options_.isa.c_str(), &dense));
    const ConvHandle owner(dense);
    check(semisparse_conv_output_size(dense, layer.height, layer.width, &out[0], &out[1]));
  }
  const Floats x = values(options_.batch * layer.height * layer.width * d.in_channels);
  Floats y = values(options_.batch * out[0] * out[1] * d.out_channels);
  const Floats residual = y;

  const auto run = [&](const Candidate& c) {
    check(semisparse_conv_run(c.conv.get(), x.data(), options_.batch, layer.height, layer.width,
                              nullptr, layer.residual ? residual.data() : nullptr, y.data(),
                              options_.threads > 1 ? ThreadPool::parallel_for : nullptr, &pool_));
  };
  const auto timed = [&](const Candidate& c, size_t runs) {
    double seconds = 0;
    if (options_.cold_mib != 0) {
      for (size_t i = 0; i < runs; ++i) {
        cool(x);
        const Clock::time_point start = Clock::now();
        run(c);
        seconds += std::chrono::duration<double>(Clock::now() - start).count();
      }
    } else {
      const Clock::time_point start = Clock::now();
      for (size_t i = 0; i < runs; ++i) run(c);
      seconds = std::chrono::duration<double>(Clock::now() - start).count();
    }
    return seconds / static_cast<double>(runs);
  };

  std::vector<Candidate> candidates;
  for (const double sparsity : options_.sparsities) {
    candidates.push_back(candidate(layer, weights, bias, sparsity, out));
    timed(candidates.back(), 1);  // pages in
  }
  double peak_flops = 0;
  constexpr size_t kRounds = 9;
  for (size_t round = 0; round < kRounds; ++round) {
    for (Candidate& c : candidates) {
      const double once = timed(c, 1);
      const double wanted = options_.seconds / static_cast<double>(kRounds) / once;
      peak_flops = std::max(peak_flops, peak());
      c.seconds = std::min(c.seconds, timed(c, static_cast<size_t>(std::clamp(wanted, 1.0, 1e5))));
    }
  }

  std::vector<Result> results;
  for (const Candidate& c : candidates) {
    const Result r{c.sparsity, c.flops, c.seconds, c.flops / c.seconds / peak_flops};
    results.push_back(r);
    std::printf(options_.csv ? "%s,%g,%s,%.5f,%.2f,%.4f\n" : "%-24s %5g  %-18s %9.4f %9.1f %7.3f\n",
                layer.name.c_str(), r.sparsity, semisparse_conv_kernel(c.conv.get()),
                r.seconds * 1e3, r.flops / r.seconds * 1e-9, r.fraction);
  }
  std::fflush(stdout);
  return results;
}

void bench(const Options& options) {
  Bench bench(options);
  for (const std::string& path : options.shapes) {
    const std::vector<Layer> layers = read_layers(path);
    if (options.csv) {
      std::printf("layer,sparsity,kernel,ms,gflops,peak\n");
    } else {
      std::printf("%s on %s, %zu thread%s, batch %lld, weights %s\n", path.c_str(),
                  bench.isa().c_str(), options.threads, options.threads == 1 ? "" : "s",
                  static_cast<long long>(options.batch), options.cold_mib == 0 ? "warm" : "cold");
      std::printf("%-24s %5s  %-18s %9s %9s %7s\n", "layer", "s", "kernel", "ms", "GFLOP/s",
                  "peak");
    }
    std::vector<Result> totals(options.sparsities.size(), Result{0, 0, 0, 0});
    for (const Layer& layer : layers) {
      const std::vector<Result> results = bench.layer(layer);
      for (size_t i = 0; i < results.size(); ++i) {
        totals[i].flops += results[i].flops;
        totals[i].seconds += results[i].seconds;
        totals[i].fraction += results[i].fraction * results[i].seconds;
      }
    }
    if (options.csv) continue;
    for (size_t i = 0; i < totals.size(); ++i) {
      const Result& r = totals[i];
      std::printf("%-24s %5g  %-18s %9.4f %9.1f %7.3f  %.2fx the first\n", "total",
                  options.sparsities[i], "", r.seconds * 1e3, r.flops / r.seconds * 1e-9,
                  r.fraction / r.seconds, totals[0].seconds / r.seconds);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (std::find(args.begin(), args.end(), "--help") != args.end()) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    bench(parse(args));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernel_bench: %s\n", error.what());
    return 1;
  }
}
