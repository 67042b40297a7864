// Threads for tests and benchmarks; the library has none of its own.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include "semisparse.h"

namespace semisparse::test {

// A semisparse_parallel_for on a fixed number of threads, the caller's included. Each takes the
// next task when it has done its last. One job at a time: concurrent callers wait for each other.
class ThreadPool {
 public:
  explicit ThreadPool(size_t threads) {
    for (size_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    start(nullptr);
    for (std::thread& worker : workers_) worker.join();
  }

  // ctx is the pool.
  static void parallel_for(void* ctx, size_t n, semisparse_task task, void* arg) {
    static_cast<ThreadPool*>(ctx)->run(n, task, arg);
  }

  void run(size_t n, semisparse_task task, void* arg) {
    const std::lock_guard<std::mutex> one_caller(caller_);
    Job job{n, task, arg, {0}};
    start(&job);
    work(job);
    while (busy_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

 private:
  struct Job {
    size_t n;
    semisparse_task task;
    void* arg;
    std::atomic<size_t> next;
  };

  static void work(Job& job) {
    for (size_t i; (i = job.next.fetch_add(1)) < job.n;) job.task(job.arg, i);
  }

  // A null job sends the workers home.
  void start(Job* job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      busy_ = workers_.size();
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void serve() {
    for (size_t seen = 0;; ++seen) {
      // The next layer of a network follows within microseconds, and waking takes tens of them.
      const auto start = std::chrono::steady_clock::now();
      while (generation_.load(std::memory_order_acquire) == seen &&
             std::chrono::steady_clock::now() - start < std::chrono::microseconds(200)) {
      }
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        job = job_;
      }
      if (job == nullptr) return;
      work(*job);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex caller_, mutex_;
  std::condition_variable wake_;
  std::atomic<size_t> generation_{0};
  std::atomic<size_t> busy_{0};
  Job* job_ = nullptr;
};

}  // namespace semisparse::test
