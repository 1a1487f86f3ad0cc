#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/adapters.h"
#include "cuda/attention.h"
#include "cuda/memory.h"
#include "cuda/rows.h"
#include "cuda/sampling.h"
#include "src/queued_device.h"

namespace niwaki::cuda {

/// A GPU as plans see it: its stream, on which everything of a device runs.
struct Gpu {
  int32_t index;
  int32_t multiprocessors;
  cudaStream_t stream;
};

/// Slots of a CudaPlan.
class CudaPlanSlots;

/// A plan bound to a GPU. Its operations are captured as one graph for each bucket of rows and of output
/// rows; what differs from step to step is uploaded before.
class CudaPlan final : public QueuedPlan {
 public:
  /// Throws kInvalidArgument, kOutOfMemory.
  CudaPlan(PlanSpec spec, Gpu gpu, std::shared_ptr<const void> owner);
  ~CudaPlan() override;

  size_t bytes() const override { return bytes_; }
  StepResult run(const Step& step, const std::atomic<bool>& cancelled) override;

  /// All tensors that linear operations multiply by, those of one operation after each other.
  std::vector<LinearTensor> linear_tensors() const;
  /// A row of a tensor as floats.
  std::vector<float> tensor_rows(const std::string& name) const;
  cudaStream_t stream() const { return gpu_.stream; }

 private:
  struct BoundOp {
    DeviceMemory memory;  // norm weights, frequencies
    double rope_factor = 1;
    bool prepares = false;      // can quantize its rows for the linear operation after it
    bool writes_floats = true;  // something else reads its output
    bool stores_next = false;   // a norm of heads that the store after it is done with, or both by attention
    bool through_scratch = false;  // SwiGLU, or an addition, of a matrix whose epilogues cannot do it
  };
  /// The rows that kernels are launched for.
  struct Bucket {
    int32_t rows, outputs;
    bool wide;   // AttentionShape::wide
    bool fused;  // attention does the operations on heads before it, too, where they follow one another
    friend auto operator<=>(const Bucket&, const Bucket&) = default;
  };
  /// Where things of a step lie, in staging memory and on the GPU alike.
  struct Layout {
    size_t counts, first_bad, tokens, positions, sequences, table_begins, outputs, items, samples, adapters,
        tables, end;
  };

  void bind();
  void lay_out();
  void allocate();
  template <class T>
  const T* op_at(size_t index) const;
  bool read_later(size_t index, BufferId buffer) const;
  FloatRows buffer(BufferId id) const;
  int32_t rows_of(const Bucket& bucket, BufferId id) const;
  bool per_output(BufferId id) const { return spec().buffers[static_cast<size_t>(id)].per_output; }
  Quantized quantized(size_t which, QuantizedLayout layout, int32_t rows, int64_t columns) const;
  std::vector<Quantized> quantized_for(const CudaMatrix& matrix, int32_t rows) const;
  bool adapts(size_t index) const { return slots_ != nullptr && slots_->touches(index); }

  HeadNorm head_norm(const QkNormRopeOp& op, size_t index) const;

  void encode(const Bucket& bucket, const CudaAdapterSlots* slots);
  void encode(const EmbedOp& op, size_t index, const Bucket& bucket);
  void encode(const RopeTableOp& op, size_t index, const Bucket& bucket);
  void encode(const RmsNormOp& op, size_t index, const Bucket& bucket);
  void encode(const LinearOp& op, size_t index, const Bucket& bucket);
  void encode(const QkNormRopeOp& op, size_t index, const Bucket& bucket);
  void encode(const KvStoreOp& op, size_t index, const Bucket& bucket);
  void encode(const PagedAttentionOp& op, size_t index, const Bucket& bucket);
  void encode(const SelectOutputsOp& op, size_t index, const Bucket& bucket);
  bool takes_floats(size_t index, const Bucket& bucket) const;
  bool norms_next(size_t index, const Bucket& bucket) const;
  bool quantizes_next(size_t index, const Bucket& bucket) const;
  void multiply(const LinearOp& op, size_t index, const Bucket& bucket, const FloatRows& out,
                Epilogue epilogue);

  Bucket bucket_of(const Step& step) const;
  size_t most_item_bytes() const;
  cudaGraphExec_t graph_of(const Bucket& bucket);
  void stage(const Step& step, bool wide);
  void upload(size_t begin, size_t end);
  [[noreturn]] void refuse(unsigned long long bad, const Step& step) const;
  std::string describe_row(const Step& step, int32_t row) const;

  const Gpu gpu_;
  std::vector<BoundOp> ops_;
  std::vector<DeviceMemory> buffers_;
  DeviceMemory quantized_[2];
  DeviceMemory scratch_;  // rows of a linear operation that its epilogue cannot finish
  int64_t scratch_width_ = 0;
  std::optional<AttentionShape> attention_;
  DeviceMemory attention_memory_;
  AttentionScratch attention_scratch_{};
  CudaSampler sampler_;

  Layout layout_{};
  DeviceMemory step_memory_;
  PinnedMemory staging_, results_;
  StepView view_{};
  std::map<Bucket, cudaGraphExec_t> graphs_;
  size_t bytes_ = 0;

  // Of the step that runs.
  std::vector<AttentionItem> items_;
  const CudaAdapterSlots* slots_ = nullptr;
};

/// The adapters that steps of a CudaPlan may use.
class CudaPlanSlots final : public QueuedSlots {
 public:
  CudaPlanSlots(std::shared_ptr<const CudaPlan> plan, AdapterSlotsSpec spec);
  const AdapterSlotsSpec& spec() const override { return slots_.spec(); }
  const std::vector<Shape>& shapes() const override { return slots_.shapes(); }
  size_t bytes() const override { return slots_.bytes(); }
  const QueuedPlan& plan() const override { return *plan_; }
  void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const override {
    slots_.check(slot, adapter);
  }
  void check(const AdapterTarget& target) const override { slots_.check(target); }
  void populate(ThreadPool&) override {}  // cudaMalloc has
  void load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter) override {
    slots_.load(pool, slot, adapter, plan_->stream());
  }
  std::vector<float> row_norms(ThreadPool& pool, const AdapterTarget& target) const override;
  const CudaAdapterSlots& on_gpu() const { return slots_; }

 private:
  const std::shared_ptr<const CudaPlan> plan_;
  CudaAdapterSlots slots_;
};

}  // namespace niwaki::cuda
