// Parallelism comes in from outside; the core has no threads of its own.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <thread>

#include "semisparse.h"

namespace semisparse {

// How many threads a job may expect, which nobody says: as many as have been seen at one together
// in this process, and now and then twice as many, to see more. On a machine of 64 cores, shares
// for all of these made one thread 1 to 2% slower, and two 2 to 4%.
class Threads {
 public:
  struct Job {
    uint64_t number;  // from 1
    size_t threads;
  };
  static Job next_job() {
    constexpr uint64_t kBetweenTries = 16;
    const uint64_t number = jobs_.fetch_add(1, std::memory_order_relaxed) + 1;
    const size_t seen = seen_.load(std::memory_order_relaxed);
    const size_t wanted = number % kBetweenTries == 1 ? 2 * seen : seen;
    return {number, std::min(wanted, most())};
  }
  static void saw(size_t threads) {
    size_t seen = seen_.load(std::memory_order_relaxed);
    while (seen < threads &&
           !seen_.compare_exchange_weak(seen, threads, std::memory_order_relaxed)) {
    }
  }

  static constexpr size_t kMost = 64;

 private:
  static size_t most() {
    static const size_t cores = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kMost);
    return cores;
  }

  static inline std::atomic<uint64_t> jobs_{0};
  static inline std::atomic<size_t> seen_{1};
};

// The numbers [0, n) in parts of at least `grain`, in one share for each thread. Who takes from a
// share gets the first half of what is left of it, and who has finished a share, once all have been
// begun, goes on with the second half of the largest one. So threads finish together, though the
// first layers after a pause, other processes, or slow cores hold some of them up, and each finds
// the same rows of a layer in its cache that it wrote in the one before.
class Shares {
 public:
  Shares(uint64_t job, size_t n, size_t grain, size_t shares)
      : job_(job), grain_(grain), shares_(shares) {
    for (size_t i = 0; i < shares; ++i) {
      left_[i].range = packed({n * i / shares, n * (i + 1) / shares});
    }
  }

  struct Part {
    size_t begin, end;
    size_t size() const { return end - begin; }
  };

  // To be called before a share is taken from.
  void begin() {
    thread_local uint64_t last_job = 0;
    if (last_job != job_) threads_.fetch_add(1, std::memory_order_relaxed);
    last_job = job_;
    begun_.fetch_add(1, std::memory_order_relaxed);
  }

  // How many have begun shares.
  size_t threads() const { return threads_.load(std::memory_order_relaxed); }

  // An empty part where there is nothing left that this share should do.
  Part take(size_t share) {
    std::atomic<uint64_t>& own = left_[share].range;
    uint64_t seen = own.load(std::memory_order_relaxed);
    for (;;) {
      const Part part = unpacked(seen);
      if (part.size() == 0) {
        if (!steal(own)) return part;
        seen = own.load(std::memory_order_relaxed);
        continue;
      }
      const size_t size = half(part);
      if (own.compare_exchange_weak(seen, packed({part.begin + size, part.end}),
                                    std::memory_order_relaxed)) {
        return {part.begin, part.begin + size};
      }
    }
  }

 private:
  // On a cache line of its own.
  struct alignas(64) Left {
    std::atomic<uint64_t> range;
  };

  static uint64_t packed(Part part) { return uint64_t{part.begin} << 32 | part.end; }
  static Part unpacked(uint64_t range) { return {range >> 32, range & 0xffffffff}; }

  // Of what is left; all of it where the other half would be smaller than the grain.
  size_t half(Part part) const {
    const size_t size = std::max(grain_, (part.size() + 1) / 2);
    return part.size() < size + grain_ ? part.size() : size;
  }

  bool steal(std::atomic<uint64_t>& own) {
    if (begun_.load(std::memory_order_relaxed) < shares_) return false;
    for (;;) {
      std::atomic<uint64_t>* largest = nullptr;
      uint64_t seen = 0;
      size_t most = 0;
      for (size_t i = 0; i < shares_; ++i) {
        const uint64_t range = left_[i].range.load(std::memory_order_relaxed);
        if (unpacked(range).size() <= most) continue;
        most = unpacked(range).size();
        largest = &left_[i].range;
        seen = range;
      }
      if (largest == nullptr) return false;
      const Part part = unpacked(seen);
      const size_t middle = part.end - half(part);
      if (largest->compare_exchange_weak(seen, packed({part.begin, middle}),
                                         std::memory_order_relaxed)) {
        own.store(packed({middle, part.end}), std::memory_order_relaxed);
        return true;
      }
    }
  }

  uint64_t job_;
  size_t grain_, shares_;
  std::atomic<size_t> begun_{0}, threads_{0};
  std::array<Left, Threads::kMost> left_;
};

class Parallel {
 public:
  Parallel(semisparse_parallel_for fn, void* ctx) : fn_(fn), ctx_(ctx) {}

  // Calls task(i) for every i in [0, n). An exception must not escape into a foreign thread, so the
  // first one is kept and thrown again here once all tasks are done.
  template <typename Task>
  void operator()(size_t n, const Task& task) const {
    if (fn_ == nullptr || n <= 1) {
      for (size_t i = 0; i < n; ++i) task(i);
      return;
    }
    Job<Task> job{task};
    fn_(ctx_, n, [](void* arg, size_t i) { static_cast<Job<Task>*>(arg)->run(i); }, &job);
    if (job.error) std::rethrow_exception(job.error);
  }

  // Calls task(begin, end) for ranges of at least `grain`, where there are that many, that make up
  // [0, n). How many there are depends on how fast the threads are.
  template <typename Task>
  void ranges(size_t n, size_t grain, const Task& task) const {
    const auto nothing = [] { return 0; };
    ranges(n, grain, nothing, [&](int, size_t begin, size_t end) { task(begin, end); });
  }

  // The same with task(own, begin, end), where `own` is what make() has given to the thread; most
  // ranges begin where its last one ended.
  template <typename Make, typename Task>
  void ranges(size_t n, size_t grain, const Make& make, const Task& task) const {
    if (n == 0) return;
    grain = std::max<size_t>(1, grain);
    // The whole of it is not worth two threads, or there is but one: then no job is counted.
    const bool serial = fn_ == nullptr || n < 2 * grain || n > std::numeric_limits<uint32_t>::max();
    const Threads::Job job = serial ? Threads::Job{0, 1} : Threads::next_job();
    const size_t shares = std::min(job.threads, n / grain);
    if (shares <= 1) {
      auto own = make();
      task(own, size_t{0}, n);
      return;
    }
    Shares left(job.number, n, grain, shares);
    (*this)(shares, [&](size_t share) {
      left.begin();
      Shares::Part part = left.take(share);
      if (part.size() == 0) return;
      auto own = make();
      for (; part.size() > 0; part = left.take(share)) task(own, part.begin, part.end);
    });
    Threads::saw(left.threads());
  }

 private:
  template <typename Task>
  struct Job {
    const Task& task;
    std::atomic<bool> failed{false};
    std::exception_ptr error{};

    void run(size_t i) noexcept {
      try {
        task(i);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  };

  semisparse_parallel_for fn_;
  void* ctx_;
};

}  // namespace semisparse
