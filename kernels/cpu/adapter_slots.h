#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/adapter_packing.h"
#include "cpu/page_memory.h"
#include "cpu/plan.h"
#include "cpu/thread_pool.h"
#include "niwaki/adapter.h"

namespace niwaki {

/// The adapters that steps of a plan may use, packed in memory that is laid out once.
class CpuAdapterSlots final : public QueuedSlots {
 public:
  /// Throws kInvalidArgument naming a target that the plan does not multiply by, kOutOfMemory.
  CpuAdapterSlots(std::shared_ptr<const CpuPlan> plan, AdapterSlotsSpec spec);

  const AdapterSlotsSpec& spec() const override { return targets_.spec(); }
  const std::vector<Shape>& shapes() const override { return targets_.shapes(); }
  /// The highest rank, padded.
  int64_t padded_rank() const { return targets_.padded_rank(); }
  size_t bytes() const override { return memory_.size(); }
  const CpuPlan& plan() const override { return *plan_; }

  void populate(ThreadPool& pool) override;

  void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const override {
    targets_.check(slot, adapter);
  }
  void check(const AdapterTarget& target) const override { targets_.check(target); }
  void load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter) override;
  std::vector<float> row_norms(ThreadPool& pool, const AdapterTarget& target) const override;

  /// Targets of the parts of a linear operation's matrix, -1 for a part that is none; empty if none is one.
  const std::vector<int32_t>& of_op(size_t op) const { return ops_[op]; }
  const AdapterPart& part(int32_t slot, int32_t target) const {
    return parts_[static_cast<size_t>(slot) * shapes().size() + static_cast<size_t>(target)];
  }
  bool holds_adapter(int32_t slot) const { return filled_[static_cast<size_t>(slot)]; }

 private:
  void find_targets();
  void reserve();
  AdapterPart& part(int32_t slot, int32_t target) {
    return parts_[static_cast<size_t>(slot) * shapes().size() + static_cast<size_t>(target)];
  }

  const std::shared_ptr<const CpuPlan> plan_;
  const AdapterKernels& kernels_;
  AdapterTargets targets_;
  std::vector<const CpuMatrix::Part*> tensors_;  // of each target
  std::vector<std::vector<int32_t>> ops_;
  PageMemory memory_;
  std::vector<AdapterPart> parts_;  // [slot][target]
  std::vector<bool> filled_;        // of each slot
};

}  // namespace niwaki
