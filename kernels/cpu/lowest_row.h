#pragma once
#include <atomic>
#include <cstdint>

namespace niwaki {

/// The lowest of the rows that the threads of a phase found at fault.
class LowestRow {
 public:
  void note(int64_t row) {
    int64_t seen = row_.load(std::memory_order_relaxed);
    while (row < seen && !row_.compare_exchange_weak(seen, row, std::memory_order_relaxed)) {
    }
  }
  /// After the phase; -1 if there is none.
  int64_t found() const {
    const int64_t row = row_.load(std::memory_order_relaxed);
    return row == INT64_MAX ? -1 : row;
  }

 private:
  std::atomic<int64_t> row_{INT64_MAX};
};

}  // namespace niwaki
