#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/linear.h"
#include "cpu/page_memory.h"
#include "cpu/rope.h"
#include "cpu/row_adapters.h"
#include "cpu/sampling.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "niwaki/device.h"

namespace niwaki {

/// A plan bound to a tier and the threads of a device. Its buffers serve one step at a time.
class CpuPlan final : public Plan {
 public:
  /// Throws kInvalidArgument, kOutOfMemory.
  CpuPlan(PlanSpec spec, const Tier& tier, ThreadPool& pool, std::shared_ptr<const void> owner);

  size_t bytes() const override { return memory_.size(); }
  const PlanSpec& spec() const { return spec_; }
  const Tier& tier() const { return tier_; }
  /// The identity of the device that compiled it. A plan keeps it, so that no later device can have the same.
  const void* owner() const { return owner_.get(); }

  /// From a job of the pool, with a step that check_step has passed. Throws kCancelled, kNonFinite.
  StepResult run(const Step& step, const std::atomic<bool>& cancelled);

 private:
  struct BoundOp {
    std::unique_ptr<Linear> linear;  // of a LinearOp
    std::unique_ptr<Rope> rope;      // of a RopeTableOp
    bool into_next = false;          // of a norm that the linear operation after it can take on the way
  };
  struct Buffer {
    float* data;
    int64_t stride;  // floats, a multiple of 16
  };
  struct Row {
    int32_t sequence;
    int32_t position;
  };
  struct Tile {  // rows of one sequence that attention takes together
    int32_t first_row;
    int32_t rows;
  };

  void run_op(const EmbedOp& op, size_t index);
  void run_op(const RopeTableOp& op, size_t index);
  void run_op(const RmsNormOp& op, size_t index);
  void run_op(const LinearOp& op, size_t index);
  void run_op(const QkNormRopeOp& op, size_t index);
  void run_op(const KvStoreOp& op, size_t index);
  void run_op(const PagedAttentionOp& op, size_t index);
  void run_op(const SelectOutputsOp& op, size_t index);
  void gather_adapters();
  bool can_join_next(size_t index) const;
  void norm(const RmsNormOp& op, size_t index);
  StepResult finish(const std::atomic<bool>& cancelled);

  template <class F>
  void share(int64_t items, int64_t work, F&& f);
  const Buffer& buffer(BufferId id) const { return buffers_[static_cast<size_t>(id)]; }
  float* at(BufferId id, int64_t row) const { return buffer(id).data + row * buffer(id).stride; }
  int64_t row_count(BufferId id) const;
  void require_finite(int64_t first_bad, BufferId buffer, size_t op, const char* what) const;
  std::string describe_row(int64_t row) const;

  const PlanSpec spec_;
  const Tier& tier_;
  ThreadPool& pool_;
  const std::shared_ptr<const void> owner_;
  std::vector<BoundOp> ops_;

  PageMemory memory_;  // buffers, then scratch
  std::vector<Buffer> buffers_;
  std::byte* linear_scratch_ = nullptr;
  float* attention_scratch_ = nullptr;
  int64_t attention_scratch_stride_ = 0;  // floats, from thread to thread
  std::vector<Sampler> samplers_;         // one per thread

  // Of the step that runs.
  const Step* step_ = nullptr;
  std::vector<Row> rows_;
  std::vector<Tile> tiles_;
  RowAdapters adapters_;         // of all rows
  RowAdapters output_adapters_;  // of the output rows
};

}  // namespace niwaki
