// The operations of a plan on heads: their norm and rotation, the store of keys and values, attention. Where
// the three follow one another, and a step has no rows of one sequence in several tiles, each item of
// attention norms and stores the heads that it reads, and nothing waits between them.
#include <algorithm>
#include <cmath>
#include <span>

#include "cpu/attention_kernels.h"
#include "cpu/lowest_row.h"
#include "cpu/plan.h"

namespace niwaki {

/// Rows that attention takes together: with all heads of the group so many that widening a span costs little
/// beside the products with it, and their sums stay in the second-level cache.
int32_t CpuPlan::attention_rows(const QkvLayout& layout) {
  return std::max(1, 128 / (layout.heads / layout.kv_heads));
}

/// Whether no sequence of the step reads a block that another one writes.
bool CpuPlan::sequences_apart() {
  const std::vector<StepSequence>& sequences = step_->sequences;
  if (sequences.size() == 1 || writer_.empty()) return true;
  const auto blocks_from = [&](const StepSequence& s, int32_t position) {
    const int32_t first = position / spec_.block_size, last = (s.context_length - 1) / spec_.block_size;
    return std::span(s.block_table)
        .subspan(static_cast<size_t>(first), static_cast<size_t>(last - first + 1));
  };
  const auto written = [&](const StepSequence& s) { return blocks_from(s, s.context_length - s.row_count); };
  const auto writer_of = [&](int32_t block) -> int32_t& { return writer_[static_cast<size_t>(block)]; };
  bool apart = true;
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (const int32_t block : written(sequences[i])) writer_of(block) = static_cast<int32_t>(i);
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    for (const int32_t block : blocks_from(sequences[i], 0))
      apart &= writer_of(block) < 0 || writer_of(block) == static_cast<int32_t>(i);
  }
  for (const StepSequence& s : sequences) {
    for (const int32_t block : written(s)) writer_of(block) = -1;
  }
  return apart;
}

/// Norms and turns a head of a row, in place. False if it is not finite.
bool CpuPlan::norm_head(const QkNormRopeOp& op, int64_t row, int64_t head) {
  const QkvLayout& l = op.layout;
  const Vector& weight = head < l.heads ? *op.q_norm : *op.k_norm;
  return tier_.rows.norm_rope(at(op.qkv, row) + head * l.head_dim, weight.values().data(), op.eps,
                              at(op.rope, row), l.head_dim);
}

void CpuPlan::run_op(const QkNormRopeOp& op, size_t index) {
  if (ops_[index].into_next) {
    const HeadShares shares = share_heads(op.layout);
    heads_joined_ = apart_ && shares.parts == 1 && tiles_.size() == step_->sequences.size();
    if (heads_joined_) return;
  }
  const int64_t heads = op.layout.heads + op.layout.kv_heads;  // values are left as they are
  LowestRow bad;
  share(row_count(op.qkv) * heads, op.layout.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!norm_head(op, i / heads, i % heads)) bad.note(i / heads);
    }
  });
  require_finite(bad.found(), op.qkv, index, "queries or keys");
}

/// Stores the key and the value of a row and a KV head. False if a page cannot hold them.
bool CpuPlan::store_head(const KvStoreOp& op, int64_t row, int32_t head) {
  const QkvLayout& l = op.layout;
  const KvShape& shape = op.kv->shape();
  const Row& place = rows_[static_cast<size_t>(row)];
  const auto& table = step_->sequences[static_cast<size_t>(place.sequence)].block_table;
  const int32_t block = table[static_cast<size_t>(place.position / shape.block_size)];
  const int32_t slot = place.position % shape.block_size;
  const float* key = at(op.qkv, row) + int64_t{l.heads + head} * l.head_dim;
  const float* value = key + int64_t{l.kv_heads} * l.head_dim;
  const bool key_fits = tier_.attention.store_key(key, l.head_dim, shape.block_size, slot, shape.type,
                                                  pages_of(op).keys(op.layer, block, head));
  const bool value_fits = tier_.attention.store_value(value, l.head_dim, shape.block_size, slot, shape.type,
                                                      pages_of(op).values(op.layer, block, head));
  return key_fits && value_fits;
}

void CpuPlan::run_op(const KvStoreOp& op, size_t index) {
  if (ops_[index].into_next && heads_joined_) return;
  const QkvLayout& l = op.layout;
  LowestRow bad;
  share(row_count(op.qkv) * l.kv_heads, 8 * l.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!store_head(op, i / l.kv_heads, static_cast<int32_t>(i % l.kv_heads))) bad.note(i / l.kv_heads);
    }
  });
  require_stored(bad.found(), op, index);
}

void CpuPlan::require_stored(int64_t first_bad, const KvStoreOp& op, size_t index) const {
  require_finite(first_bad, op.qkv, index,
                 op.kv->shape().type == KvType::kF16
                     ? "keys or values, as float16 (up to 65504; pages of other types hold more),"
                     : "keys or values");
}

/// Sets the tiles of the step, and shares them out. Where there are more threads than tiles, the query heads
/// of a KV head are shared out too: its pages are then read more than once, but by threads that would have
/// had nothing to do.
CpuPlan::HeadShares CpuPlan::share_heads(const QkvLayout& l) {
  const int32_t group = l.heads / l.kv_heads, most = attention_rows(l);
  tiles_.clear();
  int32_t row = 0;
  for (const StepSequence& sequence : step_->sequences) {
    const int32_t end = row + sequence.row_count;
    for (; row < end; row += std::min(most, end - row)) tiles_.push_back({row, std::min(most, end - row)});
  }
  const int64_t heads = static_cast<int64_t>(tiles_.size()) * l.kv_heads;
  const auto parts_wanted =
      static_cast<int32_t>(std::min<int64_t>(group, (pool_.threads() + heads - 1) / heads));
  const int32_t part_heads = (group + parts_wanted - 1) / parts_wanted;
  const int32_t parts = (group + part_heads - 1) / part_heads;
  return {static_cast<int64_t>(tiles_.size()), group, part_heads, parts, heads * parts};
}

/// Head by head, so that a thread's pages are of few heads. Each from the back: the last tiles of a prompt
/// see most, and what runs longest should start first.
CpuPlan::HeadItem CpuPlan::head_item(const HeadShares& shares, int64_t index) const {
  const int64_t part = index / shares.tiles;
  const auto first = static_cast<int32_t>(part % shares.parts) * shares.part_heads;
  return {tiles_[static_cast<size_t>(shares.tiles - 1 - index % shares.tiles)],
          static_cast<int32_t>(part / shares.parts), first,
          std::min(shares.part_heads, shares.group - first)};
}

void CpuPlan::attend(const PagedAttentionOp& op, const HeadShares& shares, int64_t index, int thread) {
  const QkvLayout& l = op.layout;
  const KvShape& shape = op.kv->shape();
  const auto table_of = [&](const Row& row) {
    return step_->sequences[static_cast<size_t>(row.sequence)].block_table.data();
  };
  const HeadItem item = head_item(shares, index);
  const int64_t at_head = (int64_t{item.kv_head} * shares.group + item.first_head) * l.head_dim;
  const Row& first = rows_[static_cast<size_t>(item.tile.first_row)];
  AttentionTile tile;
  tile.q = at(op.qkv, item.tile.first_row) + at_head;
  tile.q_stride = buffer(op.qkv).stride;
  tile.rows = item.tile.rows;
  tile.group = item.heads;
  tile.head_dim = l.head_dim;
  tile.first_position = first.position;
  tile.block_table = table_of(first);
  tile.layer = pages_of(op).layer(op.layer);
  tile.layout = pages_of(op).layout();
  tile.kv_head = item.kv_head;
  tile.block_size = shape.block_size;
  tile.type = shape.type;
  tile.scale = 1.0f / std::sqrt(static_cast<float>(l.head_dim));
  tile.out = at(op.out, item.tile.first_row) + at_head;
  tile.out_stride = buffer(op.out).stride;
  tile.scratch = attention_scratch_ + thread * attention_scratch_stride_;
  tile.next = {};
  if (index + 1 < shares.items) {
    const HeadItem next = head_item(shares, index + 1);
    const Row& last = rows_[static_cast<size_t>(next.tile.first_row + next.tile.rows - 1)];
    tile.next = {table_of(last), last.position / shape.block_size + 1, next.kv_head};
  }
  tier_.attention.attend(tile);
}

void CpuPlan::run_op(const PagedAttentionOp& op, size_t index) {
  const QkvLayout& l = op.layout;
  const HeadShares shares = share_heads(l);
  const bool joined = index > 0 && ops_[index - 1].into_next && heads_joined_;
  const auto* norm = joined ? op_at<QkNormRopeOp>(index - 2) : nullptr;
  const auto* store = joined ? op_at<KvStoreOp>(index - 1) : nullptr;
  const bool in_groups =
      shares.group * l.head_dim % kGroupColumns == 0 && shares.part_heads * l.head_dim % kGroupColumns == 0;
  Linear::Input* next = in_groups ? begin_next(index) : nullptr;
  LowestRow not_normed, not_stored;

  // The heads of an item's rows are read by no other item.
  const auto prepare_heads = [&](const HeadItem& item) {
    const int64_t first_head = int64_t{item.kv_head} * shares.group;
    for (int64_t row = item.tile.first_row; row < item.tile.first_row + item.tile.rows; ++row) {
      bool normed = norm_head(*norm, row, l.heads + item.kv_head);
      for (int32_t i = 0; i < shares.group; ++i) normed &= norm_head(*norm, row, first_head + i);
      if (!normed) not_normed.note(row);
      if (!store_head(*store, row, item.kv_head)) not_stored.note(row);
    }
  };
  const auto prepare_next = [&](const HeadItem& item) {
    const int64_t first = (int64_t{item.kv_head} * shares.group + item.first_head) * l.head_dim;
    for (int32_t i = 0; i < item.tile.rows; ++i)
      next->prepare(item.tile.first_row + i, first, int64_t{item.heads} * l.head_dim);
  };
  pool_.parallel([&](Worker& worker) {
    worker.each(shares.items, 1, [&](int64_t i, int64_t) {
      const HeadItem item = head_item(shares, i);
      if (joined) prepare_heads(item);
      attend(op, shares, i, worker.index());
      if (next != nullptr) prepare_next(item);
    });
  });
  if (!joined) return;
  require_finite(not_normed.found(), norm->qkv, index - 2, "queries or keys");
  require_stored(not_stored.found(), *store, index - 1);
}

}  // namespace niwaki
