#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpu/adapter_kernels.h"
#include "cpu/page_memory.h"
#include "cpu/plan.h"
#include "cpu/thread_pool.h"
#include "niwaki/adapter.h"

namespace niwaki {

/// What an adapter does to one target, as it lies in a slot.
struct AdapterPart {
  int32_t rank = 0;  // 0: nothing
  float scale = 0;
  uint8_t* a = nullptr;
  uint8_t* b = nullptr;
  float* rank_scale = nullptr;
  float* row_scale = nullptr;
  bool scales_rows = false;  // DoRA
};

/// The adapters that steps of a plan may use, packed in memory that is laid out once:
///
///   slot:    | target | target | ... |
///   target:  | A | B | a scale for each rank | f for each row of the tensor |   of the highest rank
class CpuAdapterSlots final : public AdapterSlots {
 public:
  /// Throws kInvalidArgument naming a target that the plan does not multiply by, kOutOfMemory.
  CpuAdapterSlots(std::shared_ptr<const CpuPlan> plan, AdapterSlotsSpec spec);

  const AdapterSlotsSpec& spec() const override { return spec_; }
  const std::vector<Shape>& shapes() const override { return shapes_; }
  /// The highest rank, padded.
  int64_t padded_rank() const { return (spec_.max_rank + kAdapterRanks - 1) / kAdapterRanks * kAdapterRanks; }
  size_t bytes() const override { return memory_.size(); }
  const CpuPlan& plan() const { return *plan_; }

  /// Takes the memory from the system, with all threads; from inside a job.
  void populate(ThreadPool& pool);

  /// Throws kInvalidArgument, kNonFinite naming the tensor. Any thread.
  void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const;
  void check(const AdapterTarget& target) const;

  /// Replaces what a slot holds; nothing at all empties it. From inside a job, with what `check` has passed.
  /// Throws kNonFinite naming the tensor, and then leaves the slot as it was.
  void load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter);

  /// || W + scale B A || of every row of the target's tensor; from inside a job, as above.
  std::vector<float> row_norms(ThreadPool& pool, const AdapterTarget& target) const;

  /// Targets of the parts of a linear operation's matrix, -1 for a part that is none; empty if none is one.
  const std::vector<int32_t>& of_op(size_t op) const { return ops_[op]; }
  const AdapterPart& part(int32_t slot, int32_t target) const {
    return parts_[static_cast<size_t>(slot) * shapes_.size() + static_cast<size_t>(target)];
  }
  bool holds_adapter(int32_t slot) const { return filled_[static_cast<size_t>(slot)]; }

 private:
  struct Scales;
  void find_targets();
  void reserve();
  AdapterPart& part(int32_t slot, int32_t target) {
    return parts_[static_cast<size_t>(slot) * shapes_.size() + static_cast<size_t>(target)];
  }
  int32_t target_named(const std::string& tensor) const;
  std::vector<Scales> examine(ThreadPool& pool, const std::vector<AdapterTarget>& adapter) const;
  void pack(ThreadPool& pool, const std::vector<AdapterTarget>& adapter, const std::vector<Scales>& scales,
            int32_t slot);

  const std::shared_ptr<const CpuPlan> plan_;
  const AdapterSlotsSpec spec_;
  const AdapterKernels& kernels_;
  std::unordered_map<std::string, int32_t> targets_;
  std::vector<Shape> shapes_;
  std::vector<const CpuMatrix::Part*> tensors_;  // of each target
  std::vector<std::vector<int32_t>> ops_;
  PageMemory memory_;
  std::vector<AdapterPart> parts_;  // [slot][target]
  std::vector<bool> filled_;        // of each slot
};

}  // namespace niwaki
