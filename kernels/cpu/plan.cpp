#include "cpu/plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "cpu/adapter_slots.h"
#include "cpu/attention_kernels.h"
#include "cpu/op_uses.h"
#include "cpu/plan_check.h"
#include "cpu/row_kernels.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr int64_t kAlignment = 64;  // bytes
constexpr int64_t kShareable =
    8192;  // floats of work below which waking other threads costs more than it brings

/// Rows that attention takes together: with all heads of the group so many that widening a span costs little
/// beside the products with it, and their sums stay in the second-level cache.
int32_t attention_rows(const QkvLayout& layout) {
  return std::max(1, 128 / (layout.heads / layout.kv_heads));
}

/// Lowers `lowest` to `row`.
void note(std::atomic<int64_t>& lowest, int64_t row) {
  int64_t seen = lowest.load(std::memory_order_relaxed);
  while (row < seen && !lowest.compare_exchange_weak(seen, row, std::memory_order_relaxed)) {
  }
}
int64_t first_of(const std::atomic<int64_t>& lowest) {
  return lowest == INT64_MAX ? -1 : lowest.load();
}

}  // namespace

CpuPlan::CpuPlan(PlanSpec spec, const Tier& tier, ThreadPool& pool, std::shared_ptr<const void> owner)
    : spec_(std::move(spec)),
      tier_(tier),
      pool_(pool),
      owner_(std::move(owner)),
      samplers_(static_cast<size_t>(pool.threads())) {
  check_plan(spec_);

  size_t linear_bytes = 0;
  int64_t attention_floats = 0;
  for (const LabeledOp& labeled : spec_.ops) {
    BoundOp bound;
    if (const auto* op = std::get_if<LinearOp>(&labeled.op)) {
      const bool per_output = spec_.buffers[static_cast<size_t>(op->in)].per_output;
      try {
        bound.linear = std::make_unique<Linear>(tier, *op->matrix, op->activation, op->accumulate,
                                                per_output ? spec_.max_outputs : spec_.max_rows);
      } catch (const Error& error) {
        throw Error(error.code, labeled.label + ": " + error.what());
      }
      linear_bytes = std::max(linear_bytes, bound.linear->scratch_bytes(pool.threads()));
    } else if (const auto* op = std::get_if<RopeTableOp>(&labeled.op)) {
      bound.rope = std::make_unique<Rope>(op->rope, labeled.label);
    } else if (const auto* op = std::get_if<PagedAttentionOp>(&labeled.op)) {
      const int64_t units = int64_t{attention_rows(op->layout)} * (op->layout.heads / op->layout.kv_heads);
      attention_floats =
          std::max(attention_floats, attention_scratch(units, op->layout.head_dim, spec_.block_size));
    }
    ops_.push_back(std::move(bound));
  }

  for (size_t i = 0; i < ops_.size(); ++i) ops_[i].into_next = can_join_next(i);

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
  const size_t linear_offset = reserve(linear_bytes);
  attention_scratch_stride_ = (attention_floats + 15) / 16 * 16;
  const size_t attention_offset =
      reserve(static_cast<size_t>(attention_scratch_stride_ * pool.threads()) * sizeof(float));

  memory_ = PageMemory(total, PageSize::kSmall, "a plan's buffers");
  for (size_t i = 0; i < buffers_.size(); ++i)
    buffers_[i].data = reinterpret_cast<float*>(memory_.data() + offsets[i]);
  linear_scratch_ = memory_.data() + linear_offset;
  attention_scratch_ = reinterpret_cast<float*>(memory_.data() + attention_offset);
}

/// Whether operation `index` is a norm of which only a linear operation right after it reads, so that what it
/// writes need not be there.
bool CpuPlan::can_join_next(size_t index) const {
  const auto* norm = std::get_if<RmsNormOp>(&spec_.ops[index].op);
  if (norm == nullptr || index + 1 == ops_.size()) return false;
  const auto* linear = std::get_if<LinearOp>(&spec_.ops[index + 1].op);
  if (linear == nullptr || linear->in != norm->out || !ops_[index + 1].linear->takes_norm()) return false;
  if (linear->out == norm->in || linear->out == norm->out) return false;
  for (size_t i = index + 2; i < spec_.ops.size(); ++i) {
    const OpUses later = uses(spec_.ops[i].op);
    if (later.reads[0] == norm->out || later.reads[1] == norm->out) return false;
    if (later.writes == norm->out) return true;
  }
  return spec_.logits != norm->out;
}

StepResult CpuPlan::run(const Step& step, const std::atomic<bool>& cancelled) {
  step_ = &step;
  rows_.clear();
  for (size_t s = 0; s < step.sequences.size(); ++s) {
    const StepSequence& sequence = step.sequences[s];
    for (int32_t i = 0; i < sequence.row_count; ++i) {
      rows_.push_back({static_cast<int32_t>(s), sequence.context_length - sequence.row_count + i});
    }
  }
  gather_adapters();
  for (size_t i = 0; i < spec_.ops.size(); ++i) {
    if (cancelled.load(std::memory_order_relaxed))
      throw Error(ErrorCode::kCancelled, "the step was cancelled");
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

/// Shares items among the threads; `work` is the floats that an item goes through.
template <class F>
void CpuPlan::share(int64_t items, int64_t work, F&& f) {
  if (items <= 1 || items * work < kShareable) return f(int64_t{0}, items);
  const int64_t grain = std::max<int64_t>(1, std::min(kShareable / 2 / work, items / pool_.threads()));
  pool_.parallel([&](Worker& worker) { worker.each(items, grain, f); });
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
  share(row_count(op.out), op.table->columns(), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      copy_row(*op.table, step_->tokens[static_cast<size_t>(r)], at(op.out, r));
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
  std::atomic<int64_t> bad{INT64_MAX};
  share(row_count(op.in), width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (!tier_.rows.rms_norm(at(op.in, r), weight.data(), op.eps, width, at(op.out, r))) note(bad, r);
    }
  });
  require_finite(first_of(bad), op.in, index, "activations");
}

void CpuPlan::run_op(const LinearOp& op, size_t index) {
  const int64_t rows = row_count(op.in);
  if (rows == 0) return;
  const Buffer &in = buffer(op.in), &out = buffer(op.out);
  RowAdapters& adapters = spec_.buffers[static_cast<size_t>(op.in)].per_output ? output_adapters_ : adapters_;
  RowAdapters* adapted = adapters.begin(index) ? &adapters : nullptr;
  const Linear& linear = *ops_[index].linear;
  if (index > 0 && ops_[index - 1].into_next && rows <= Linear::kFewRows) {
    const auto& before = std::get<RmsNormOp>(spec_.ops[index - 1].op);
    const RowNorm row_norm{before.weight->values().data(), before.eps};
    const Buffer& x = buffer(before.in);
    if (linear.run(pool_, rows, x.data, x.stride, out.data, out.stride, linear_scratch_, adapted, &row_norm) <
        0)
      return;
    norm(before, index - 1);  // one after the other, to tell which of them it was
  }
  const int64_t bad =
      linear.run(pool_, rows, in.data, in.stride, out.data, out.stride, linear_scratch_, adapted);
  require_finite(bad, op.in, index, "activations");
}

void CpuPlan::run_op(const QkNormRopeOp& op, size_t index) {
  const QkvLayout& l = op.layout;
  const int64_t heads = l.heads + l.kv_heads;  // values are left as they are
  std::atomic<int64_t> bad{INT64_MAX};
  share(row_count(op.qkv) * heads, l.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / heads, head = i % heads;
      const Vector& weight = head < l.heads ? *op.q_norm : *op.k_norm;
      if (!tier_.rows.norm_rope(at(op.qkv, row) + head * l.head_dim, weight.values().data(), op.eps,
                                at(op.rope, row), l.head_dim)) {
        note(bad, row);
      }
    }
  });
  require_finite(first_of(bad), op.qkv, index, "queries or keys");
}

void CpuPlan::run_op(const KvStoreOp& op, size_t index) {
  const QkvLayout& l = op.layout;
  const KvShape& shape = op.kv->shape();
  std::atomic<int64_t> bad{INT64_MAX};
  share(row_count(op.qkv) * l.kv_heads, 8 * l.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / l.kv_heads;
      const auto head = static_cast<int32_t>(i % l.kv_heads);
      const Row& place = rows_[static_cast<size_t>(row)];
      const auto& table = step_->sequences[static_cast<size_t>(place.sequence)].block_table;
      const int32_t block = table[static_cast<size_t>(place.position / shape.block_size)];
      const int32_t slot = place.position % shape.block_size;
      const float* key = at(op.qkv, row) + int64_t{l.heads + head} * l.head_dim;
      const float* value = key + int64_t{l.kv_heads} * l.head_dim;
      const bool key_fits = tier_.attention.store_key(key, l.head_dim, shape.block_size, slot, shape.type,
                                                      op.kv->keys(op.layer, block, head));
      const bool value_fits = tier_.attention.store_value(value, l.head_dim, shape.block_size, slot,
                                                          shape.type, op.kv->values(op.layer, block, head));
      if (!key_fits || !value_fits) note(bad, row);
    }
  });
  require_finite(first_of(bad), op.qkv, index,
                 shape.type == KvType::kF16
                     ? "keys or values, as float16 (up to 65504; pages of other types hold more),"
                     : "keys or values");
}

void CpuPlan::run_op(const PagedAttentionOp& op, size_t) {
  const QkvLayout& l = op.layout;
  const KvShape& shape = op.kv->shape();
  const int32_t group = l.heads / l.kv_heads, most = attention_rows(l);
  tiles_.clear();
  int32_t row = 0;
  for (const StepSequence& sequence : step_->sequences) {
    const int32_t end = row + sequence.row_count;
    for (; row < end; row += std::min(most, end - row)) tiles_.push_back({row, std::min(most, end - row)});
  }
  // Where there are more threads than tiles, the query heads of a KV head are shared out too: its pages are
  // then read more than once, but by threads that would have had nothing to do.
  const int64_t heads = static_cast<int64_t>(tiles_.size()) * l.kv_heads;
  const auto parts_wanted =
      static_cast<int32_t>(std::min<int64_t>(group, (pool_.threads() + heads - 1) / heads));
  const int32_t part_heads = (group + parts_wanted - 1) / parts_wanted;
  const int32_t parts = (group + part_heads - 1) / part_heads;
  // Head by head, so that a thread's pages are of few heads. Each from the back: the last tiles of a prompt
  // see most, and what runs longest should start first.
  const auto tiles = static_cast<int64_t>(tiles_.size());
  const int64_t items = heads * parts;
  const auto tile_of = [&](int64_t item) { return tiles_[static_cast<size_t>(tiles - 1 - item % tiles)]; };
  const auto head_of = [&](int64_t item) { return static_cast<int32_t>(item / tiles / parts); };
  const auto table_of = [&](const Row& row) {
    return step_->sequences[static_cast<size_t>(row.sequence)].block_table.data();
  };
  const auto attend = [&](int index, int64_t item) {
    const Tile rows = tile_of(item);
    const int32_t head = head_of(item);
    const auto first_head = static_cast<int32_t>(item / tiles % parts) * part_heads;
    const int64_t at_head = (int64_t{head} * group + first_head) * l.head_dim;
    const Row& first = rows_[static_cast<size_t>(rows.first_row)];
    AttentionTile tile;
    tile.q = at(op.qkv, rows.first_row) + at_head;
    tile.q_stride = buffer(op.qkv).stride;
    tile.rows = rows.rows;
    tile.group = std::min(part_heads, group - first_head);
    tile.head_dim = l.head_dim;
    tile.first_position = first.position;
    tile.block_table = table_of(first);
    tile.layer = op.kv->layer(op.layer);
    tile.layout = op.kv->layout();
    tile.kv_head = head;
    tile.block_size = shape.block_size;
    tile.type = shape.type;
    tile.scale = 1.0f / std::sqrt(static_cast<float>(l.head_dim));
    tile.out = at(op.out, rows.first_row) + at_head;
    tile.out_stride = buffer(op.out).stride;
    tile.scratch = attention_scratch_ + index * attention_scratch_stride_;
    tile.next = {};
    if (item + 1 < items) {
      const Tile next = tile_of(item + 1);
      const Row& last = rows_[static_cast<size_t>(next.first_row + next.rows - 1)];
      tile.next = {table_of(last), last.position / shape.block_size + 1, head_of(item + 1)};
    }
    tier_.attention.attend(tile);
  };
  pool_.parallel([&](Worker& worker) {
    worker.each(items, 1, [&](int64_t item, int64_t) { attend(worker.index(), item); });
  });
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
