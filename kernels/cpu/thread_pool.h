#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace niwaki {

/// One thread's view of a parallel phase.
class Worker {
 public:
  int index() const;  // 0 .. count-1
  int count() const;

  /// Shares `items` among the threads of the phase in runs of `grain`, taken as threads become free. Which thread takes
  /// which item must not matter to the result: threads split rows, never a reduction.
  template <class F>  // void(int64_t begin, int64_t end)
  void each(int64_t items, int64_t grain, F&& f);
};

/// A persistent pool. Between the phases of a job threads spin for a moment (a token is ~290 matrices); between jobs
/// they sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  int threads() const;
  /// Queues a job; it runs when those before it have ended. Any thread may call it.
  void submit(std::function<void()> job);
  /// From inside a job: runs `phase` on every thread and returns when all are done.
  void parallel(const std::function<void(Worker&)>& phase);
};

}  // namespace niwaki
