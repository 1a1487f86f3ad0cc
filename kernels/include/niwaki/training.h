#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "niwaki/matrix.h"
#include "niwaki/plan.h"

namespace niwaki {

class Device;
class ThreadPool;

/// A trained low-rank addition to one tensor of a matrix (Hu et al., 2021): y += scale * B (A x), A [rank,
/// in], B [out, rank].
struct LoraSpec {
  int32_t part;  // which of the tensors stacked in the matrix
  int32_t rank;
  float scale;
};

// Operations of training, beside EmbedOp, RmsNormOp and SelectOutputsOp of a plan. Every buffer is written by
// one operation, and kept until the operation's gradient has been taken.
struct LoraLinearOp {  // out = matrix in + LoRA in, and + residual unless that is -1
  BufferId in;
  std::shared_ptr<const Matrix> matrix;
  BufferId out;
  BufferId residual;
  std::vector<LoraSpec> adapters;
};
struct NormRopeOp {  // out (Q | K) = RoPE(RMSNorm(head)) of every q head and k head of qkv
  BufferId qkv;
  QkvLayout layout;
  std::shared_ptr<const Vector> q_norm;
  std::shared_ptr<const Vector> k_norm;
  BufferId out;
  float eps;
};
struct CausalAttentionOp {  // of Q | K in qk and of V in qkv, within each sequence; scale 1/sqrt(head_dim)
  BufferId qk;
  BufferId qkv;
  QkvLayout layout;
  BufferId out;
};
struct SwigluOp {  // in is gate | up of equal widths: out = silu(gate) * up
  BufferId in;
  BufferId out;
};
using TrainingOp =
    std::variant<EmbedOp, RmsNormOp, LoraLinearOp, NormRopeOp, CausalAttentionOp, SwigluOp, SelectOutputsOp>;

struct LabeledTrainingOp {
  TrainingOp op;
  std::string label;
};

/// The forward pass of a model over whole sequences, from position 0; its gradients follow from it.
struct TrainingSpec {
  int32_t max_rows;      // of a batch
  int32_t max_outputs;   // rows of a batch that are trained on
  int32_t max_sequence;  // rows of a sequence
  int32_t vocabulary;
  RopeSpec rope;
  std::vector<BufferSpec> buffers;
  std::vector<LabeledTrainingOp> ops;
  BufferId logits;
};

/// Sequences and what they should go on with.
struct TrainingBatch {
  std::vector<int32_t> tokens;     // R rows, grouped by sequence
  std::vector<int32_t> sequences;  // rows of each
  std::vector<int32_t> outputs;    // rows that are trained on, ascending
  std::vector<int32_t> targets;    // of each output row: the token that should follow
  std::vector<float> weights;      // of each output row, in the loss: sum of weight * -ln p(target)
};

/// AdamW (Loshchilov and Hutter, 2019).
struct AdamW {
  int64_t step;  // from 1
  double learning_rate;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double max_gradient_norm = 0;  // 0: no clipping
};

/// What is kept of each trained number.
enum class TrainingState : int32_t { kParameters, kGradients, kFirstMoments, kSecondMoments };

/// A frozen model in its packed form, its low-rank additions, their gradients and their optimizer. Its
/// methods but `adapters` and `bytes` are called from jobs (Device::submit), so one after another.
///
/// All in float32. The same batches give the same bits on any number of threads and in every tier: threads
/// split rows and columns, never a sum.
class TrainingPlan {
 public:
  struct Adapter {
    int64_t rank, inputs, outputs;
  };

  /// Throws kInvalidArgument for widths that do not fit or are no multiple of 16, kOutOfMemory. All
  /// parameters are 0 until they are written.
  static std::shared_ptr<TrainingPlan> compile(const Device& device, TrainingSpec spec);
  virtual ~TrainingPlan() = default;

  /// In the order of the operations and of their lists.
  virtual const std::vector<Adapter>& adapters() const = 0;
  virtual size_t bytes() const = 0;

  /// Throws kInvalidArgument for a batch that does not fit the plan.
  virtual void check(const TrainingBatch& batch) const = 0;

  /// Runs a batch forward and back, adds the gradients of its loss to those kept, and returns the loss. When
  /// it throws (kNonFinite, kCancelled) all gradients are 0.
  virtual double accumulate(ThreadPool& pool, const TrainingBatch& batch,
                            const std::atomic<bool>& cancelled) = 0;

  /// Scales the gradients so that their norm is at most `max_gradient_norm`, takes a step of the optimizer,
  /// and sets the gradients to 0. Returns the norm before scaling. Throws kNonFinite, with gradients of 0.
  virtual double update(ThreadPool& pool, const AdamW& options) = 0;

  /// Of every adapter in turn: A [rank, inputs], B [outputs, rank].
  virtual std::vector<float> read(TrainingState state) const = 0;
  virtual void write(TrainingState state, std::span<const float> values) = 0;
};

}  // namespace niwaki
