#include "cpu/training/training_plan.h"

#include <algorithm>
#include <cmath>

#include "cpu/double_math.h"
#include "cpu/row_kernels.h"
#include "cpu/training/training_check.h"
#include "niwaki/device.h"
#include "niwaki/error.h"

namespace niwaki {

/// Hands out offsets of floats, aligned to 16; what is given back serves again where it fits exactly.
class CpuTrainingPlan::Layout {
 public:
  size_t take(int64_t rows, int64_t stride) {
    const size_t floats = (static_cast<size_t>(rows) * static_cast<size_t>(stride) + 15) / 16 * 16;
    for (size_t i = 0; i < free_.size(); ++i) {
      if (free_[i].second != floats) continue;
      const size_t at = free_[i].first;
      free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
      return at;
    }
    const size_t at = total_;
    if (__builtin_add_overflow(total_, floats, &total_) || total_ >= size_t{1} << 45)
      throw Error(ErrorCode::kOutOfMemory, "the activations of training are more than can be addressed");
    return at;
  }
  void give(size_t at, int64_t rows, int64_t stride) {
    free_.push_back({at, (static_cast<size_t>(rows) * static_cast<size_t>(stride) + 15) / 16 * 16});
  }
  size_t bytes() const { return total_ * sizeof(float); }

 private:
  std::vector<std::pair<size_t, size_t>> free_;
  size_t total_ = 0;
};

std::shared_ptr<TrainingPlan> TrainingPlan::compile(const Device& device, TrainingSpec spec) {
  return std::make_shared<CpuTrainingPlan>(choose_tier(device.tier()), device.threads(), std::move(spec));
}

CpuTrainingPlan::CpuTrainingPlan(const Tier& tier, int threads, TrainingSpec spec)
    : spec_(std::move(spec)), tier_(tier), ops_(spec_.ops.size()) {
  check_training(spec_);
  for (const BufferSpec& buffer : spec_.buffers)
    buffers_.push_back({.stride = (buffer.width + 15) / 16 * 16});
  for (size_t i = 0; i < ops_.size(); ++i) {
    try {
      bind(i);
    } catch (const Error& error) {
      throw Error(error.code, spec_.ops[i].label + ": " + error.what());
    }
  }
  parameters_.reserve();
  for (const auto& adapter : parameters_.adapters())
    adapters_.push_back({adapter.rank, adapter.inputs, adapter.outputs});

  Layout layout;
  int64_t thread_floats = 0, work_floats = 0;
  for (size_t i = 0; i < buffers_.size(); ++i)
    buffers_[i].value = layout.take(limit(static_cast<BufferId>(i)), buffers_[i].stride);
  for (BoundOp& op : ops_) {
    if (op.attention) thread_floats = std::max(thread_floats, op.attention->thread_floats());
    if (!op.linear) continue;
    thread_floats = std::max(thread_floats, op.linear->thread_floats());
    work_floats = std::max(work_floats, op.linear->kept());
    op.kept_stride = op.linear->kept();
    op.kept = layout.take(spec_.max_rows, op.kept_stride);
  }
  work_ = layout.take(spec_.max_rows, work_floats);
  std::vector<size_t> scratch;
  for (int t = 0; t < threads; ++t) scratch.push_back(layout.take(1, thread_floats));
  plan_gradients(layout);
  memory_ = PageMemory(layout.bytes(), PageSize::kHuge, "the activations of training");
  for (const size_t at : scratch) scratch_.push_back(floats(at));

  const Rope rope(spec_.rope, "rope");
  const auto dim = static_cast<size_t>(spec_.rope.head_dim);
  rope_.resize(static_cast<size_t>(spec_.max_sequence) * dim);
  for (int32_t p = 0; p < spec_.max_sequence; ++p) rope.row(p, rope_.data() + static_cast<size_t>(p) * dim);
}

void CpuTrainingPlan::bind(size_t index) {
  const TrainingOp& op = spec_.ops[index].op;
  bool backward = false;
  const TrainingPorts ports = ports_of(op);
  for (const BufferId in : ports.in) backward |= buffer(in).has_gradient;
  if (const auto* linear = std::get_if<LoraLinearOp>(&op)) {
    ops_[index].linear = std::make_unique<LoraLinear>(tier_.training, cpu_matrix(*linear->matrix),
                                                      linear->adapters, parameters_);
    backward |= !linear->adapters.empty();
  } else if (const auto* attention = std::get_if<CausalAttentionOp>(&op)) {
    ops_[index].attention =
        std::make_unique<CausalAttention>(tier_.training, attention->layout, spec_.max_sequence);
  }
  buffer(ports.out).has_gradient = backward;
  ops_[index].backward = backward;
}

/// Walks the operations back and gives each gradient memory from its first use to its last. What an operation
/// adds to its residual has the gradient of the sum, so the two share memory.
void CpuTrainingPlan::plan_gradients(Layout& layout) {
  std::vector<bool> placed(buffers_.size());
  // The loss writes the gradient of the logits over them.
  buffer(spec_.logits).gradient = buffer(spec_.logits).value;
  placed[static_cast<size_t>(spec_.logits)] = true;
  for (size_t i = ops_.size(); i-- > 0;) {
    BoundOp& op = ops_[i];
    if (!op.backward) continue;
    const auto require = [&](bool ok, const char* what) {
      if (!ok) throw Error(ErrorCode::kInvalidArgument, spec_.ops[i].label + ": " + what);
    };
    const TrainingPorts ports = ports_of(spec_.ops[i].op);
    require(placed[static_cast<size_t>(ports.out)], "nothing uses its output");
    const auto* linear = std::get_if<LoraLinearOp>(&spec_.ops[i].op);
    const BufferId residual = linear != nullptr ? linear->residual : -1;
    const bool adds = linear != nullptr || std::holds_alternative<RmsNormOp>(spec_.ops[i].op);
    const bool after_attention = std::holds_alternative<NormRopeOp>(spec_.ops[i].op);
    bool shared = false;
    for (const BufferId in : ports.in) {
      if (!buffer(in).has_gradient) continue;
      const auto index = static_cast<size_t>(in);
      if (in == residual) {
        require(!placed[index], "its residual is used again after it");
        buffer(in).gradient = buffer(ports.out).gradient;
        shared = true;
      } else {
        // The gradients of Q and K go beside that of V, which attention has written; others write alone or
        // add.
        require(adds || placed[index] == after_attention, "another operation uses its input too");
        op.input_gradient = true;
        op.accumulate = placed[index];
        if (!placed[index]) buffer(in).gradient = layout.take(limit(in), buffer(in).stride);
      }
      placed[index] = true;
    }
    if (!shared && ports.out != spec_.logits)
      layout.give(buffer(ports.out).gradient, limit(ports.out), buffer(ports.out).stride);
  }
}

int64_t CpuTrainingPlan::row_count(BufferId id) const {
  return static_cast<int64_t>(spec_of(id).per_output ? batch_->outputs.size() : batch_->tokens.size());
}

double CpuTrainingPlan::accumulate(ThreadPool& pool, const TrainingBatch& batch,
                                   const std::atomic<bool>& cancelled) {
  batch_ = &batch;
  sequences_.clear();
  positions_.clear();
  int64_t first = 0;
  for (const int32_t count : batch.sequences) {
    sequences_.push_back({first, count});
    first += count;
    for (int32_t p = 0; p < count; ++p) positions_.push_back(p);
  }
  const auto go_on = [&] {
    if (cancelled.load(std::memory_order_relaxed))
      throw Error(ErrorCode::kCancelled, "the training step was cancelled");
  };
  try {
    for (size_t i = 0; i < ops_.size(); ++i) {
      go_on();
      std::visit([&](const auto& op) { forward(pool, ops_[i], op); }, spec_.ops[i].op);
    }
    const double loss = lose(pool);
    for (size_t i = ops_.size(); i-- > 0;) {
      go_on();
      if (ops_[i].backward) std::visit([&](const auto& op) { backward(pool, ops_[i], op); }, spec_.ops[i].op);
    }
    return loss;
  } catch (...) {
    parameters_.clear_gradients();
    throw;
  }
}

/// Cross entropy, and its gradient over the logits: weight * (softmax - one-hot).
double CpuTrainingPlan::lose(ThreadPool& pool) {
  const Rows logits = value(spec_.logits);
  const int64_t rows = row_count(spec_.logits), n = spec_.vocabulary;
  std::vector<double> losses(static_cast<size_t>(rows));
  pool.parallel([&](Worker& worker) {
    std::vector<double> sums(static_cast<size_t>((n + kSumRun - 1) / kSumRun));
    worker.each(rows, 1, [&](int64_t row, int64_t) {
      float* x = logits.data + row * logits.stride;
      const auto target = static_cast<size_t>(batch_->targets[static_cast<size_t>(row)]);
      const float weight = batch_->weights[static_cast<size_t>(row)];
      bool finite;
      const float max = x[tier_.rows.argmax(x, n, &finite)];
      const float at_target = x[target];
      tier_.rows.exp_weights(x, n, max, 1, x, sums.data());
      double total = 0;
      for (const double sum : sums) total += sum;
      losses[static_cast<size_t>(row)] =
          finite ? static_cast<double>(weight) *
                       (natural_log(total) + static_cast<double>(max) - static_cast<double>(at_target))
                 : static_cast<double>(NAN);
      const auto scale = static_cast<float>(static_cast<double>(weight) / total);
      for (int64_t i = 0; i < n; ++i) x[i] *= scale;
      x[target] -= weight;
    });
  });
  double loss = 0;
  for (const double l : losses) loss += l;
  if (!std::isfinite(loss))
    throw Error(ErrorCode::kNonFinite,
                "the loss is NaN or infinite; try a lower learning rate or a longer warm-up");
  return loss;
}

}  // namespace niwaki
