// Ranges of work: whatever the threads do, each number is in one range.
#include "core/parallel.h"

#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/check.h"
#include "tests/thread_pool.h"

using namespace semisparse;
using namespace semisparse::test;

namespace {

// Runs tasks one after the other on the calling thread, the last one first.
void backwards(void*, size_t n, semisparse_task task, void* arg) {
  while (n > 0) task(arg, --n);
}

void check_cover(const Parallel& parallel, size_t n, size_t grain) {
  context = std::to_string(n) + " by " + std::to_string(grain);
  std::vector<std::atomic<int>> times(n);
  std::atomic<size_t> small{0};
  parallel.ranges(n, grain, [&](size_t begin, size_t end) {
    CHECK(begin < end && end <= n);
    if (end - begin < grain) ++small;
    for (size_t i = begin; i < end; ++i) ++times[i];
  });
  for (size_t i = 0; i < n; ++i) CHECK(times[i] == 1);
  CHECK(small == 0 || (small == 1 && n < grain));
}

// What a thread that stands still has in hand is less than its share: the others do the rest.
void check_slow_thread(ThreadPool& pool) {
  context = "a slow thread";
  if (std::thread::hardware_concurrency() < 2) return;
  constexpr size_t kNumbers = 4096;
  const std::thread::id slow = std::this_thread::get_id();
  std::atomic<size_t> done{0};
  Parallel(ThreadPool::parallel_for, &pool).ranges(kNumbers, 1, [&](size_t begin, size_t end) {
    done += end - begin;
    if (std::this_thread::get_id() != slow) return;
    const auto start = std::chrono::steady_clock::now();
    while (done < kNumbers) {
      CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
      std::this_thread::yield();
    }
  });
}

void check_error(const Parallel& parallel) {
  context = "an error";
  bool thrown = false;
  try {
    parallel.ranges(100, 1, [](size_t begin, size_t) {
      if (begin == 0) throw std::runtime_error("no");
    });
  } catch (const std::runtime_error& error) {
    thrown = error.what() == std::string("no");
  }
  CHECK(thrown);
}

}  // namespace

int main() {
  ThreadPool pool(4);
  const Parallel ways[] = {
      {nullptr, nullptr}, {backwards, nullptr}, {ThreadPool::parallel_for, &pool}};
  for (const Parallel& parallel : ways) {
    for (const size_t n : {0, 1, 2, 3, 7, 64, 65, 1000}) {
      for (const size_t grain : {1, 2, 5, 64, 2000}) {
        for (size_t i = 0; i < 20; ++i) check_cover(parallel, n, grain);
      }
    }
    check_error(parallel);
  }
  check_slow_thread(pool);
}
