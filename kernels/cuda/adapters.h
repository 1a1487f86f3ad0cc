#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/adapter_packing.h"
#include "cuda/adapter_kernels.h"
#include "niwaki/adapter.h"
#include "niwaki/step.h"

namespace niwaki::cuda {

/// A tensor that a linear operation of a plan multiplies by, alone or stacked with others.
struct LinearTensor {
  std::string name;
  size_t op;          // index in PlanSpec::ops
  int64_t first_row;  // in the operation's matrix and output
  int64_t rows, columns;
  bool per_output;  // the operation is over output rows
};

/// The adapters that steps of a plan may use, in memory of the GPU that is taken once.
class CudaAdapterSlots final : public AdapterSlots {
 public:
  /// `kernels`: of the CPU's tier, which packs what is loaded. `tensors`: all tensors of the plan's linear
  /// operations; those of one operation follow one another. Throws kInvalidArgument naming a target that is
  /// not among them, kOutOfMemory.
  CudaAdapterSlots(const AdapterKernels& kernels, const std::vector<LinearTensor>& tensors, int32_t max_rows,
                   int32_t max_outputs, AdapterSlotsSpec spec);

  const AdapterSlotsSpec& spec() const override { return targets_.spec(); }
  const std::vector<Shape>& shapes() const override { return targets_.shapes(); }
  /// With what the kernels keep between each other.
  size_t bytes() const override { return bytes_; }

  /// Throws kInvalidArgument, kNonFinite naming the tensor. Any thread.
  void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const { targets_.check(slot, adapter); }
  void check(const AdapterTarget& target) const { targets_.check(target); }

  /// Replaces what a slot holds; nothing at all empties it. From inside a job of the pool, with what `check`
  /// has passed, while no step runs; returns when it is done. Throws kNonFinite naming the tensor, and then
  /// leaves the slot as it was.
  void load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter, cudaStream_t stream);

  /// || W + scale B A || of every row of the target's tensor, as the CPU computes it; from inside a job, as
  /// above. `copy_row` gives a row of W in float32, on any thread.
  std::vector<float> row_norms(ThreadPool& pool, const AdapterTarget& target,
                               const std::function<void(int64_t row, float* weights)>& copy_row) const;

  bool holds_adapter(int32_t slot) const { return filled_[static_cast<size_t>(slot)]; }

  /// Whether adapters may change a linear operation's result. `project` and `add` do nothing if not.
  bool touches(size_t op) const { return op < ops_.size() && ops_[op].tensor_count > 0; }

  /// Which rows of a step have which adapters, as AdapterStep; empty if none has one. Throws kInvalidArgument
  /// if a sequence uses a slot that holds none.
  std::vector<uint8_t> pack_step(const Step& step) const;
  /// Bytes that pack_step gives at most.
  size_t max_step_bytes() const;

  /// The kernels of one operation, in this order (adapter_kernels.h). `rows` is the bucket of rows, or of
  /// output rows; `step` is in device memory, at a multiple of 16 bytes, since before the step's first
  /// kernel.
  void project(size_t op, int32_t rows, const uint8_t* step, const float* x, int64_t x_stride,
               cudaStream_t stream) const;
  void add(size_t op, int32_t rows, const uint8_t* step, const float* y, int64_t y_stride, float* out,
           int64_t out_stride, bool accumulate, cudaStream_t stream) const;

 private:
  struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
  };
  using Memory = std::unique_ptr<void, Free>;

  Memory allocate(size_t bytes);
  void find_targets(const std::vector<LinearTensor>& tensors);
  void upload(cudaStream_t stream, size_t at, const void* from, size_t bytes);
  void upload_states(cudaStream_t stream, int32_t slot);
  void upload_target(ThreadPool& pool, int32_t slot, const AdapterTarget& target, const AdapterScales& scales,
                     cudaStream_t stream);

  const int32_t max_rows_, max_outputs_;
  const AdapterKernels& kernels_;
  AdapterTargets targets_;
  std::vector<AdapterOp> ops_;        // of the plan; no tensors if there is no target
  std::vector<AdapterState> states_;  // [slot][target]
  std::vector<bool> filled_;          // of each slot
  size_t bytes_ = 0;
  Memory slots_, device_states_, t_;
};

}  // namespace niwaki::cuda
