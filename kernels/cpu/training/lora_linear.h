#pragma once
#include <cstdint>
#include <vector>

#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "cpu/training/lora_parameters.h"
#include "cpu/training/training_kernels.h"
#include "niwaki/training.h"

namespace niwaki {

/// Rows of floats, `stride` apart.
struct Rows {
  float* data;
  int64_t stride;
};

/// y = W x + scale B (A x), and its gradients. W stays packed: 64 rows by 128 columns of it become floats at
/// a time, and are used for many rows of x before the next.
class LoraLinear {
 public:
  /// Adds its adapters to the parameters. Throws kInvalidArgument. Both must outlive it.
  LoraLinear(const TrainingKernels& kernels, const CpuMatrix& matrix, const std::vector<LoraSpec>& adapters,
             LoraParameters& parameters);

  /// Floats that it keeps of each row between forward and backward: A x of every adapter.
  int64_t kept() const { return kept_; }
  /// Floats of scratch that each thread needs.
  int64_t thread_floats() const;

  /// y = W x + ..., or y += with accumulate.
  void forward(ThreadPool& pool, int64_t rows, Rows x, Rows y, bool accumulate, Rows kept,
               const std::vector<float*>& scratch) const;

  /// Adds to the gradients of the adapters; and dx = W^T dy + ..., or dx += with accumulate, unless dx.data
  /// is null. `work` is as wide as `kept`.
  void backward(ThreadPool& pool, int64_t rows, Rows x, Rows dy, Rows dx, bool accumulate, Rows kept,
                Rows work, const std::vector<float*>& scratch) const;

 private:
  struct Branch {
    size_t index;  // in the parameters
    int64_t part;
    int64_t first_output;  // of the part, in y
    int64_t first_kept;    // in a row of what is kept
    float scale;
  };
  WeightBlock block(size_t part, int64_t index) const;
  void forward_block(size_t part, int64_t index, int64_t rows, Rows x, Rows y, bool accumulate, Rows kept,
                     float* scratch) const;
  void backward_columns(int64_t first, int64_t rows, Rows dy, Rows dx, bool accumulate, Rows work,
                        float* scratch) const;

  const TrainingKernels& kernels_;
  const CpuMatrix& matrix_;
  LoraParameters& parameters_;
  std::vector<Branch> branches_;
  int64_t kept_ = 0;
};

}  // namespace niwaki
