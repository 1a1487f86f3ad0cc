#include "cpu/plan.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "cpu/adapter_slots.h"
#include "cpu/attention_kernels.h"
#include "cpu/lowest_row.h"
#include "cpu/row_kernels.h"
#include "niwaki/error.h"
#include "src/op_uses.h"
#include "src/plan_check.h"

namespace niwaki {
namespace {

constexpr int64_t kAlignment = 64;  // bytes

}  // namespace

CpuPlan::CpuPlan(PlanSpec spec, const Tier& tier, ThreadPool& pool, std::shared_ptr<const void> owner)
    : QueuedPlan(std::move(spec), std::move(owner)),
      tier_(tier),
      pool_(pool),
      samplers_(static_cast<size_t>(pool.threads())) {
  size_t linear_bytes[2]{};
  int64_t attention_floats = 0;
  for (const LabeledOp& labeled : spec_.ops) {
    BoundOp bound;
    if (const auto* op = std::get_if<LinearOp>(&labeled.op)) {
      const bool per_output = spec_.buffers[static_cast<size_t>(op->in)].per_output;
      try {
        bound.linear = std::make_unique<Linear>(tier, cpu_matrix(*op->matrix), op->activation, op->accumulate,
                                                per_output ? spec_.max_outputs : spec_.max_rows);
      } catch (const Error& error) {
        throw Error(error.code, labeled.label + ": " + error.what());
      }
    } else if (const auto* op = std::get_if<RopeTableOp>(&labeled.op)) {
      bound.rope = std::make_unique<Rope>(op->rope, labeled.label);
    } else if (const auto* op = std::get_if<EmbedOp>(&labeled.op)) {
      cpu_matrix(*op->table);
    } else if (const auto* op = std::get_if<KvStoreOp>(&labeled.op)) {
      cpu_kv_cache(*op->kv);
    } else if (const auto* op = std::get_if<PagedAttentionOp>(&labeled.op)) {
      cpu_kv_cache(*op->kv);
      const int64_t units = int64_t{attention_rows(op->layout)} * (op->layout.heads / op->layout.kv_heads);
      attention_floats =
          std::max(attention_floats, attention_scratch(units, op->layout.head_dim, spec_.block_size));
    }
    ops_.push_back(std::move(bound));
  }

  for (size_t i = 0; i < ops_.size(); ++i) {
    ops_[i].into_next = can_join_next(i);
    ops_[i].prepares_next = can_prepare_next(i);
    if (ops_[i].linear == nullptr) continue;
    size_t& bytes = linear_bytes[linear_scratch(i)];
    bytes = std::max(bytes, ops_[i].linear->scratch_bytes(pool.threads()));
  }
  for (size_t i = ops_.size(); i-- > 1;) {
    BoundOp::NextLinear& next = ops_[i - 1].next_linear;
    next = ops_[i].next_linear;
    if (ops_[i].linear != nullptr) {
      next = {ops_[i].linear.get(), {}};
    } else if (ops_[i].into_next && op_at<RmsNormOp>(i) != nullptr) {
      next.norm = op_at<RmsNormOp>(i)->weight->values();
    }
  }
  writer_.assign(static_cast<size_t>(kv_blocks(spec_)), -1);

  // Offsets first, then one reservation; pages that no step touches cost nothing.
  size_t total = 0;
  const auto reserve = [&total](size_t bytes) {
    const size_t offset = total;
    if (__builtin_add_overflow(total, (bytes + kAlignment - 1) / kAlignment * kAlignment, &total) ||
        total >= size_t{1} << 47) {
      throw Error(ErrorCode::kOutOfMemory, "plan: its activation buffers are more than can be addressed");
    }
    return offset;
  };
  std::vector<size_t> offsets;
  for (const BufferSpec& buffer : spec_.buffers) {
    const int64_t stride = (buffer.width + 15) / 16 * 16;
    const auto rows = static_cast<size_t>(buffer.per_output ? spec_.max_outputs : spec_.max_rows);
    size_t bytes;
    if (__builtin_mul_overflow(rows, static_cast<size_t>(stride) * sizeof(float), &bytes))
      bytes = SIZE_MAX / 2;
    offsets.push_back(reserve(bytes));
    buffers_.push_back({nullptr, stride});
  }
  const size_t linear_offsets[] = {reserve(linear_bytes[0]), reserve(linear_bytes[1])};
  attention_scratch_stride_ = (attention_floats + 15) / 16 * 16;
  const size_t attention_offset =
      reserve(static_cast<size_t>(attention_scratch_stride_ * pool.threads()) * sizeof(float));

  memory_ = PageMemory(total, PageSize::kSmall, "a plan's buffers");
  for (size_t i = 0; i < buffers_.size(); ++i)
    buffers_[i].data = reinterpret_cast<float*>(memory_.data() + offsets[i]);
  for (int i = 0; i < 2; ++i) linear_scratch_[i] = memory_.data() + linear_offsets[i];
  attention_scratch_ = reinterpret_cast<float*>(memory_.data() + attention_offset);
}

/// Whether operation `index` can be done by the one after it: a norm of which only a linear operation right
/// after it reads, so that what it writes need not be there, or the heads' norm and the store before
/// attention.
bool CpuPlan::can_join_next(size_t index) const {
  if (const auto* norm = op_at<RmsNormOp>(index)) {
    const auto* linear = op_at<LinearOp>(index + 1);
    if (linear == nullptr || linear->in != norm->out || !ops_[index + 1].linear->takes_norm()) return false;
    if (linear->out == norm->in || linear->out == norm->out) return false;
    for (size_t i = index + 2; i < spec_.ops.size(); ++i) {
      const OpUses later = uses(spec_.ops[i].op);
      if (later.reads[0] == norm->out || later.reads[1] == norm->out) return false;
      if (later.writes == norm->out) return true;
    }
    return spec_.logits != norm->out;
  }
  if (op_at<KvStoreOp>(index) != nullptr) return index > 0 && ops_[index - 1].into_next;
  const auto* norm = op_at<QkNormRopeOp>(index);
  const auto* store = op_at<KvStoreOp>(index + 1);
  const auto* attention = op_at<PagedAttentionOp>(index + 2);
  if (norm == nullptr || store == nullptr || attention == nullptr) return false;
  return norm->qkv == store->qkv && norm->qkv == attention->qkv && norm->rope != attention->out &&
         norm->layout == store->layout && norm->layout == attention->layout && store->kv == attention->kv &&
         store->layer == attention->layer;
}

/// Whether the threads of operation `index` can prepare what they write for the linear operation after it.
bool CpuPlan::can_prepare_next(size_t index) const {
  const auto* attention = op_at<PagedAttentionOp>(index);
  const auto* linear = op_at<LinearOp>(index);
  const auto* next = op_at<LinearOp>(index + 1);
  if (next == nullptr || !ops_[index + 1].linear->takes_input()) return false;
  if (attention != nullptr) return next->in == attention->out;
  // There are two scratches and one input: what came prepared prepares nothing.
  return linear != nullptr && linear->activation == Activation::kSwiglu && next->in == linear->out &&
         (index == 0 || !ops_[index - 1].prepares_next);
}

/// The scratch of a linear operation: the second where the one before it, which uses the first, prepares its
/// rows.
size_t CpuPlan::linear_scratch(size_t index) const {
  return index > 0 && ops_[index - 1].linear != nullptr && ops_[index - 1].prepares_next ? 1 : 0;
}

/// What operation `index` shall prepare of what it writes, as it now begins; null if nothing.
Linear::Input* CpuPlan::begin_next(size_t index) {
  if (!ops_[index].prepares_next) return nullptr;
  const auto& next = std::get<LinearOp>(spec_.ops[index + 1].op);
  const int64_t rows = row_count(next.in);
  if (rows > Linear::kFewRows || adapters_of(next).touch(index + 1)) return nullptr;
  const Buffer& x = buffer(next.in);
  return &input_.emplace(*ops_[index + 1].linear, rows, x.data, x.stride,
                         linear_scratch_[linear_scratch(index + 1)]);
}

StepResult CpuPlan::run(const Step& step, const std::atomic<bool>& cancelled) {
  step_ = &step;
  input_.reset();
  rows_.clear();
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const StepSequence& sequence = step.sequences[s];
    for (int32_t i = 0; i < sequence.row_count; ++i) {
      rows_.push_back({static_cast<int32_t>(s), sequence.context_length - sequence.row_count + i});
    }
  }
  gather_adapters();
  apart_ = sequences_apart();
  const struct NoMore {  // is read after this step
    ThreadPool& pool;
    ~NoMore() { pool.read_next<BoundOp::NextLinear>(nullptr); }
  } no_more{pool_};
  for (size_t i = 0; i < spec_.ops.size(); ++i) {
    if (cancelled.load(std::memory_order_relaxed))
      throw Error(ErrorCode::kCancelled, "the step was cancelled");
    const BoundOp::NextLinear& next = ops_[i].next_linear;
    pool_.read_next(next.linear != nullptr ? &next : nullptr);
    std::visit([&](const auto& op) { run_op(op, i); }, spec_.ops[i].op);
  }
  return finish(cancelled);
}

void CpuPlan::gather_adapters() {
  const auto* slots = static_cast<const CpuAdapterSlots*>(step_->adapter_slots.get());
  std::vector<int32_t> sequences, of_outputs;
  if (slots != nullptr) {
    for (const Row& row : rows_) sequences.push_back(row.sequence);
    for (const int32_t row : step_->outputs) of_outputs.push_back(sequences[static_cast<size_t>(row)]);
  }
  adapters_.gather(slots, *step_, sequences);
  output_adapters_.gather(slots, *step_, of_outputs);
}

RowAdapters& CpuPlan::adapters_of(const LinearOp& op) {
  return spec_.buffers[static_cast<size_t>(op.in)].per_output ? output_adapters_ : adapters_;
}

int64_t CpuPlan::row_count(BufferId id) const {
  return static_cast<int64_t>(spec_.buffers[static_cast<size_t>(id)].per_output ? step_->outputs.size()
                                                                                : rows_.size());
}

std::string CpuPlan::describe_row(int64_t row) const {
  const Row& found = rows_[static_cast<size_t>(row)];
  return "row " + std::to_string(row) + " (sequence " + std::to_string(found.sequence) + ", position " +
         std::to_string(found.position) + ")";
}

void CpuPlan::require_finite(int64_t first_bad, BufferId buffer, size_t op, const char* what) const {
  if (first_bad < 0) return;
  if (spec_.buffers[static_cast<size_t>(buffer)].per_output)
    first_bad = step_->outputs[static_cast<size_t>(first_bad)];
  throw Error(ErrorCode::kNonFinite, std::string(what) + " of " + describe_row(first_bad) +
                                         " are not finite at " + spec_.ops[op].label);
}

void CpuPlan::run_op(const EmbedOp& op, size_t) {
  const CpuMatrix& table = cpu_matrix(*op.table);
  share(row_count(op.out), table.columns(), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      copy_row(table, step_->tokens[static_cast<size_t>(r)], at(op.out, r));
  });
}

void CpuPlan::run_op(const RopeTableOp& op, size_t index) {
  const Rope& rope = *ops_[index].rope;
  // A sine costs as much as some hundred floats of a norm.
  share(row_count(op.out), op.rope.head_dim * 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) rope.row(rows_[static_cast<size_t>(r)].position, at(op.out, r));
  });
}

void CpuPlan::run_op(const RmsNormOp& op, size_t index) {
  if (!ops_[index].into_next || row_count(op.in) > Linear::kFewRows) norm(op, index);
}

void CpuPlan::norm(const RmsNormOp& op, size_t index) {
  const std::span<const float> weight = op.weight->values();
  const auto width = static_cast<int64_t>(weight.size());
  LowestRow bad;
  share(row_count(op.in), width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (!tier_.rows.rms_norm(at(op.in, r), weight.data(), op.eps, width, at(op.out, r))) bad.note(r);
    }
  });
  require_finite(bad.found(), op.in, index, "activations");
}

void CpuPlan::run_op(const LinearOp& op, size_t index) {
  const int64_t rows = row_count(op.in);
  if (rows == 0) return;
  const Buffer &in = buffer(op.in), &out = buffer(op.out);
  const Linear& linear = *ops_[index].linear;
  if (input_) {
    const int64_t bad = linear.run(pool_, *input_, out.data, out.stride);
    input_.reset();
    return require_finite(bad, op.in, index, "activations");
  }
  RowAdapters& adapters = adapters_of(op);
  RowAdapters* adapted = adapters.begin(index) ? &adapters : nullptr;
  Linear::Input* next = begin_next(index);
  std::byte* scratch = linear_scratch_[linear_scratch(index)];
  if (index > 0 && ops_[index - 1].into_next && rows <= Linear::kFewRows) {
    const auto& before = std::get<RmsNormOp>(spec_.ops[index - 1].op);
    const RowNorm row_norm{before.weight->values().data(), before.eps};
    const Buffer& x = buffer(before.in);
    if (linear.run(pool_, rows, x.data, x.stride, out.data, out.stride, scratch, adapted, &row_norm, next) <
        0)
      return;
    norm(before, index - 1);  // one after the other, to tell which of them it was
  }
  const int64_t bad =
      linear.run(pool_, rows, in.data, in.stride, out.data, out.stride, scratch, adapted, nullptr, next);
  require_finite(bad, op.in, index, "activations");
}

void CpuPlan::run_op(const SelectOutputsOp& op, size_t) {
  const size_t bytes = static_cast<size_t>(spec_.buffers[static_cast<size_t>(op.in)].width) * sizeof(float);
  for (size_t i = 0; i < step_->outputs.size(); ++i) {
    std::memcpy(at(op.out, static_cast<int64_t>(i)), at(op.in, step_->outputs[i]), bytes);
  }
}

StepResult CpuPlan::finish(const std::atomic<bool>& cancelled) {
  if (cancelled.load(std::memory_order_relaxed)) throw Error(ErrorCode::kCancelled, "the step was cancelled");
  StepResult result;
  const size_t count = step_->samples.size();
  result.samples.resize(count);
  std::vector<std::exception_ptr> failures(count);
  const auto sample = [&](int index, size_t i) {
    const SampleSpec& spec = step_->samples[i];
    const int32_t row = step_->outputs[static_cast<size_t>(spec.output)];
    try {
      result.samples[i] = samplers_[static_cast<size_t>(index)].sample(
          tier_.rows, at(spec_.logits, spec.output), spec_.vocabulary, spec,
          int64_t{rows_[static_cast<size_t>(row)].position} + 1,
          "sample " + std::to_string(i) + " of " + describe_row(row));
    } catch (...) {
      failures[i] = std::current_exception();
    }
  };
  if (count > 0) {
    pool_.parallel([&](Worker& worker) {
      worker.each(static_cast<int64_t>(count), 1,
                  [&](int64_t i, int64_t) { sample(worker.index(), static_cast<size_t>(i)); });
    });
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  if (step_->want_logits) {
    const auto vocabulary = static_cast<size_t>(spec_.vocabulary);
    result.logits.resize(step_->outputs.size() * vocabulary);
    for (size_t i = 0; i < step_->outputs.size(); ++i) {
      std::memcpy(result.logits.data() + i * vocabulary, at(spec_.logits, static_cast<int64_t>(i)),
                  vocabulary * sizeof(float));
    }
  }
  return result;
}

}  // namespace niwaki
