#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kv_cache.h"
#include "cpu/linear.h"
#include "cpu/matrix.h"
#include "cpu/page_memory.h"
#include "cpu/rope.h"
#include "cpu/row_adapters.h"
#include "cpu/sampling.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "src/queued_device.h"

namespace niwaki {

/// A plan bound to a tier and the threads of a device. Its buffers serve one step at a time.
class CpuPlan final : public QueuedPlan {
 public:
  /// Throws kInvalidArgument, kOutOfMemory.
  CpuPlan(PlanSpec spec, const Tier& tier, ThreadPool& pool, std::shared_ptr<const void> owner);

  size_t bytes() const override { return memory_.size(); }
  const Tier& tier() const { return tier_; }

  StepResult run(const Step& step, const std::atomic<bool>& cancelled) override;

 private:
  struct BoundOp {
    std::unique_ptr<Linear> linear;  // of a LinearOp
    std::unique_ptr<Rope> rope;      // of a RopeTableOp
    // What the operation after it can do on the way: a norm that a linear operation takes, or the heads' norm
    // and the store that attention takes.
    bool into_next = false;
    /// The linear operation after it, and the norm that it takes.
    struct NextLinear {
      const Linear* linear = nullptr;
      std::span<const float> norm;
      NextRead next_read(const Worker& worker) const {
        return {norm.data(), norm.size_bytes(), linear->first_weights(worker)};
      }
    } next_linear;
    bool prepares_next = false;  // what it writes can be prepared at once for the linear operation after it
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

  /// How attention is shared out: an item is some query heads of a KV head and a tile.
  struct HeadShares {
    int64_t tiles;
    int32_t group;       // query heads of a KV head
    int32_t part_heads;  // of them in an item
    int32_t parts;       // items of a KV head and a tile
    int64_t items;
  };
  struct HeadItem {
    Tile tile;
    int32_t kv_head;
    int32_t first_head;  // of the group
    int32_t heads;
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
  bool can_prepare_next(size_t index) const;
  Linear::Input* begin_next(size_t index);
  size_t linear_scratch(size_t index) const;
  RowAdapters& adapters_of(const LinearOp& op);
  bool sequences_apart();
  static int32_t attention_rows(const QkvLayout& layout);
  HeadShares share_heads(const QkvLayout& layout);
  HeadItem head_item(const HeadShares& shares, int64_t index) const;
  void attend(const PagedAttentionOp& op, const HeadShares& shares, int64_t index, int thread);
  bool norm_head(const QkNormRopeOp& op, int64_t row, int64_t head);
  bool store_head(const KvStoreOp& op, int64_t row, int32_t head);
  void require_stored(int64_t first_bad, const KvStoreOp& op, size_t index) const;
  void norm(const RmsNormOp& op, size_t index);
  template <class T>
  static const CpuKvCache& pages_of(const T& op) {  // of this device, as was checked
    return static_cast<const CpuKvCache&>(*op.kv);
  }
  StepResult finish(const std::atomic<bool>& cancelled);

  /// Shares items among the threads; `work` is the floats that an item goes through.
  template <class F>
  void share(int64_t items, int64_t work, F&& f) {
    // Below so many floats of work waking other threads costs more than it brings.
    constexpr int64_t kShareable = 8192;
    if (items <= 1 || items * work < kShareable) return f(int64_t{0}, items);
    const int64_t grain = std::max<int64_t>(1, std::min(kShareable / 2 / work, items / pool_.threads()));
    pool_.parallel([&](Worker& worker) { worker.each(items, grain, f); });
  }
  const Buffer& buffer(BufferId id) const { return buffers_[static_cast<size_t>(id)]; }
  float* at(BufferId id, int64_t row) const { return buffer(id).data + row * buffer(id).stride; }
  /// Operation `index` if it is of that kind, else null.
  template <class T>
  const T* op_at(size_t index) const {
    return index < spec_.ops.size() ? std::get_if<T>(&spec_.ops[index].op) : nullptr;
  }
  int64_t row_count(BufferId id) const;
  void require_finite(int64_t first_bad, BufferId buffer, size_t op, const char* what) const;
  std::string describe_row(int64_t row) const;

  const PlanSpec& spec_ = spec();
  const Tier& tier_;
  ThreadPool& pool_;
  std::vector<BoundOp> ops_;

  PageMemory memory_;  // buffers, then scratch
  std::vector<Buffer> buffers_;
  std::byte* linear_scratch_[2]{};
  float* attention_scratch_ = nullptr;
  int64_t attention_scratch_stride_ = 0;  // floats, from thread to thread
  std::vector<Sampler> samplers_;         // one per thread

  // Of the step that runs.
  const Step* step_ = nullptr;
  std::vector<Row> rows_;
  bool apart_ = false;           // no sequence reads a block that another one writes
  std::vector<int32_t> writer_;  // of each block, between its uses -1
  std::vector<Tile> tiles_;
  bool heads_joined_ = false;           // attention norms and stores the heads that it reads
  std::optional<Linear::Input> input_;  // of the operation that runs or the next one
  RowAdapters adapters_;                // of all rows
  RowAdapters output_adapters_;         // of the output rows
};

}  // namespace niwaki
