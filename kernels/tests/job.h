#pragma once
#include <exception>
#include <future>

#include "cpu/thread_pool.h"

namespace niwaki::test {

/// Runs `f` as a job of the pool, waits for it and throws what it threw.
template <class F>
void run_job(ThreadPool& pool, F&& f) {
  std::promise<void> done;
  pool.submit([&] {
    try {
      f();
      done.set_value();
    } catch (...) {
      done.set_exception(std::current_exception());
    }
  });
  done.get_future().get();
}

}  // namespace niwaki::test
