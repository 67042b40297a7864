// Parallelism comes in from outside; the core has no threads of its own.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>

#include "semisparse.h"

namespace semisparse {

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
