#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cpu/page_memory.h"
#include "cpu/rope.h"
#include "cpu/tier.h"
#include "cpu/training/causal_attention.h"
#include "cpu/training/lora_linear.h"
#include "cpu/training/lora_parameters.h"
#include "cpu/training/training_check.h"
#include "niwaki/training.h"

namespace niwaki {

/// A training plan bound to a tier: the operations run forward one after another, then back from the last one
/// to the first that a gradient is needed of.
///
/// Memory: values of every buffer are kept; gradients take turns in a few pieces of memory, as each is needed
/// only from the first operation that adds to it to the one that made its buffer.
class CpuTrainingPlan final : public TrainingPlan {
 public:
  CpuTrainingPlan(const Tier& tier, int threads, TrainingSpec spec);

  const std::vector<Adapter>& adapters() const override { return adapters_; }
  size_t bytes() const override { return memory_.size() + parameters_.bytes(); }
  void check(const TrainingBatch& batch) const override { check_training_batch(spec_, batch); }
  double accumulate(ThreadPool& pool, const TrainingBatch& batch,
                    const std::atomic<bool>& cancelled) override;
  double update(ThreadPool& pool, const AdamW& options) override { return parameters_.update(pool, options); }
  std::vector<float> read(TrainingState state) const override { return parameters_.read(state); }
  void write(TrainingState state, std::span<const float> values) override {
    parameters_.write(state, values);
  }

 private:
  struct Buffer {
    int64_t stride = 0;  // floats
    size_t value = 0;    // where it begins, in floats
    size_t gradient = 0;
    bool has_gradient = false;
  };
  struct BoundOp {
    std::unique_ptr<LoraLinear> linear;
    std::unique_ptr<CausalAttention> attention;
    size_t kept = 0;  // of a linear operation, in floats
    int64_t kept_stride = 0;
    bool backward = false;        // its output has a gradient
    bool input_gradient = false;  // so has its input
    bool accumulate = false;      // to which another operation has added before
  };
  class Layout;

  void bind(size_t index);
  void plan_gradients(Layout& layout);
  double lose(ThreadPool& pool);
  void forward(ThreadPool& pool, const BoundOp& bound, const EmbedOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const RmsNormOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const LoraLinearOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const NormRopeOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const CausalAttentionOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const SwigluOp& op);
  void forward(ThreadPool& pool, const BoundOp& bound, const SelectOutputsOp& op);

  void backward(ThreadPool& pool, const BoundOp& bound, const EmbedOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const RmsNormOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const LoraLinearOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const NormRopeOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const CausalAttentionOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const SwigluOp& op);
  void backward(ThreadPool& pool, const BoundOp& bound, const SelectOutputsOp& op);

  const BufferSpec& spec_of(BufferId id) const { return spec_.buffers[static_cast<size_t>(id)]; }
  Buffer& buffer(BufferId id) { return buffers_[static_cast<size_t>(id)]; }
  const Buffer& buffer(BufferId id) const { return buffers_[static_cast<size_t>(id)]; }
  float* floats(size_t offset) const { return reinterpret_cast<float*>(memory_.data()) + offset; }
  Rows value(BufferId id) const { return {floats(buffer(id).value), buffer(id).stride}; }
  Rows gradient(BufferId id) const { return {floats(buffer(id).gradient), buffer(id).stride}; }
  int64_t limit(BufferId id) const { return spec_of(id).per_output ? spec_.max_outputs : spec_.max_rows; }
  int64_t row_count(BufferId id) const;
  const float* rope(int64_t row) const {
    return rope_.data() + int64_t{positions_[static_cast<size_t>(row)]} * spec_.rope.head_dim;
  }

  const TrainingSpec spec_;
  const Tier& tier_;
  LoraParameters parameters_;
  std::vector<Adapter> adapters_;
  std::vector<Buffer> buffers_;
  std::vector<BoundOp> ops_;
  std::vector<float> rope_;  // [max_sequence][head_dim]
  PageMemory memory_;
  size_t work_ = 0;              // of the linear operation that runs back
  std::vector<float*> scratch_;  // of each thread

  // Of the batch that runs.
  const TrainingBatch* batch_ = nullptr;
  std::vector<SequenceRows> sequences_;
  std::vector<int32_t> positions_;
};

}  // namespace niwaki
