#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
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

/// A plan bound to a GPU. Its operations are captured as one graph for each bucket of rows, output rows and
/// samples; what differs from step to step is uploaded before. Of steps that follow one another, each gets
/// its tokens on the GPU from the one before, and is begun while that one runs.
class CudaPlan final : public QueuedPlan {
 public:
  /// Throws kInvalidArgument, kOutOfMemory.
  CudaPlan(PlanSpec spec, Gpu gpu, std::shared_ptr<const void> owner);
  ~CudaPlan() override;

  size_t bytes() const override { return bytes_; }
  StepResult run(const Step& step, const std::atomic<bool>& cancelled) override;
  void run_following(Step& step, const std::atomic<bool>& cancelled, const std::atomic<bool>& finished,
                     const StepRan& ran) override;

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
    int32_t rows, outputs, samples;
    CudaSampler::Kind kind;
    bool wide;   // AttentionShape::wide
    bool fused;  // attention does the operations on heads before it, too, where they follow one another
    friend auto operator<=>(const Bucket&, const Bucket&) = default;
  };
  /// Where things of a step lie, in staging memory and on the GPU alike. Tokens are first: those of a step
  /// that follows are not uploaded.
  struct Layout {
    size_t tokens, counts, first_bad, positions, sequences, table_begins, outputs, samples, adapters, tables,
        items, end;
  };
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  class Drain;
  /// What a step lies in, and the graphs that read it.
  struct Place {
    DeviceMemory memory;
    PinnedMemory staging, results;
    StepView view;
    std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy> ended;
    std::map<Bucket, cudaGraphExec_t> graphs;
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
  void discard_graphs();
  void encode_step(const Bucket& bucket, size_t place, const CudaAdapterSlots* slots);
  cudaGraphExec_t graph_of(const Bucket& bucket, size_t place);
  void make_room(size_t samples, size_t adapters, size_t tables);
  void stage(const Step& step, bool wide, size_t place, bool follows);
  void begin(const Step& step, size_t place, bool follows);
  StepResult end(const Step& step, size_t place);
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
  Place places_[2] = {};  // the one for a step, the other for the step that follows it, and so on
  std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> uploads_;  // beside a step that runs
  size_t bytes_ = 0;

  // Of the step that is begun.
  std::vector<AttentionItem> items_;
  StepView view_{};
  const uint8_t* adapters_ = nullptr;
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
