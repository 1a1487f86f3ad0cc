#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "niwaki/matrix.h"
#include "niwaki/plan.h"

namespace niwaki {

/// y = W x (or y += W x) for the rows of a step: one linear operation of a plan, bound to a tier.
class Linear {
 public:
  Linear(const Tier& tier, const Matrix& matrix, Activation activation, bool accumulate, int64_t max_rows);

  /// Bytes of scratch; all the linear operations of a plan share one scratch, as they run one after another.
  size_t scratch_bytes() const;

  /// Runs on every thread of the pool. Returns the lowest row whose activations are NaN or infinite, or -1.
  int64_t run(ThreadPool& pool, int64_t rows, const float* x, int64_t x_stride, float* y, int64_t y_stride,
              std::byte* scratch) const;
};

/// One row of a matrix as floats (an embedding): columns() values.
void copy_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace niwaki
