#include "cpu/row_adapters.h"

#include <algorithm>
#include <string>

#include "cpu/adapter_kernels.h"
#include "cpu/adapter_slots.h"
#include "cpu/tier.h"
#include "niwaki/error.h"

namespace niwaki {

void RowAdapters::gather(const CpuAdapterSlots* slots, const Step& step, std::span<const int32_t> sequences) {
  slots_ = slots;
  groups_.clear();
  rows_of_slot_.clear();
  entries_ = 0;
  if (slots == nullptr) return;
  rows_of_slot_.resize(static_cast<size_t>(slots->spec().slots));
  for (size_t row = 0; row < sequences.size(); ++row) {
    const std::vector<AdapterUse>& mix = step.sequences[static_cast<size_t>(sequences[row])].adapters;
    if (mix.empty()) continue;
    auto group = std::find_if(groups_.begin(), groups_.end(), [&](const Group& g) { return *g.mix == mix; });
    if (group == groups_.end()) group = groups_.insert(groups_.end(), Group{&mix, {}});
    group->rows.push_back({static_cast<int64_t>(row), entries_});
    for (const AdapterUse& use : mix) {
      if (!slots->holds_adapter(use.slot)) {
        throw Error(ErrorCode::kInvalidArgument, "step: sequence " + std::to_string(sequences[row]) +
                                                     " uses adapter slot " + std::to_string(use.slot) +
                                                     ", which is empty");
      }
      rows_of_slot_[static_cast<size_t>(use.slot)].push_back({static_cast<int64_t>(row), entries_++});
    }
  }
}

bool RowAdapters::begin(size_t op, const float* x, int64_t x_stride) {
  if (entries_ == 0) return false;
  targets_ = &slots_->of_op(op);
  x_ = x;
  x_stride_ = x_stride;
  const auto parts = static_cast<int64_t>(targets_->size());
  // Neighbors in the list read the same rows of x.
  items_.clear();
  for (size_t slot = 0; slot < rows_of_slot_.size(); ++slot) {
    const std::vector<Row>& rows = rows_of_slot_[slot];
    for (size_t from = 0; from < rows.size(); from += kAdapterRows) {
      const auto count = static_cast<int32_t>(std::min<size_t>(kAdapterRows, rows.size() - from));
      for (int64_t p = 0; p < parts; ++p) {
        const int32_t target = (*targets_)[static_cast<size_t>(p)];
        if (target < 0) continue;
        columns_ = slots_->shapes()[static_cast<size_t>(target)].columns;
        const AdapterPart& part = slots_->part(static_cast<int32_t>(slot), target);
        for (int32_t rank = 0; rank < part.rank; rank += kAdapterRanks)
          items_.push_back({&part, p, rank, rows.data() + from, count});
      }
    }
  }
  if (items_.empty()) return false;
  t_stride_ = parts * slots_->spec().max_rank;
  if (t_.size() < static_cast<size_t>(entries_ * t_stride_))
    t_.resize(static_cast<size_t>(entries_ * t_stride_));
  return true;
}

void RowAdapters::project(Worker& worker) {
  const AdapterType type = slots_->spec().type;
  const int64_t max_rank = slots_->spec().max_rank;
  const int64_t row_bytes = (columns_ + 15) / 16 * 16 * (type == AdapterType::kF16 ? 2 : 1);
  const AdapterKernels& kernels = slots_->plan().tier().adapters;
  worker.each(static_cast<int64_t>(items_.size()), 1, [&](int64_t i, int64_t) {
    const Item& item = items_[static_cast<size_t>(i)];
    const float* from[kAdapterRows];
    float* to[kAdapterRows];
    for (int32_t r = 0; r < item.count; ++r) {
      from[r] = x_ + item.rows[r].row * x_stride_;
      to[r] = t_.data() + item.rows[r].entry * t_stride_ + item.part_index * max_rank + item.rank;
    }
    kernels.project(type, item.part->a + item.rank * row_bytes, columns_,
                    std::min(kAdapterRanks, item.part->rank - item.rank), item.part->rank_scale + item.rank,
                    from, item.count, to);
  });
}

namespace {

/// The rows of a group among [first, first + count) of the step.
template <class Row>
std::span<const Row> rows_among(const std::vector<Row>& rows, int64_t first, int64_t count) {
  const auto before = [](const Row& r, int64_t row) { return r.row < row; };
  const auto begin = std::lower_bound(rows.begin(), rows.end(), first, before);
  return {begin, std::lower_bound(begin, rows.end(), first + count, before)};
}

}  // namespace

void RowAdapters::prefetch(size_t part, int64_t first, int64_t count, int64_t first_row, int64_t rows) const {
  const int32_t target = (*targets_)[part];
  if (target < 0) return;
  const int64_t each = slots_->spec().type == AdapterType::kF16 ? 2 : 1;
  for (const Group& group : groups_) {
    if (rows_among(group.rows, first_row, rows).empty()) continue;
    for (const AdapterUse& use : *group.mix) {
      const AdapterPart& found = slots_->part(use.slot, target);
      const uint8_t* b = found.b + first * found.rank * each;
      for (int64_t at = 0; at < count * found.rank * each; at += 64) __builtin_prefetch(b + at);
    }
  }
}

void RowAdapters::add(size_t part, int64_t first, int64_t count, int64_t first_row, int64_t rows, float* y,
                      int64_t y_stride) const {
  const int32_t target = (*targets_)[part];
  if (target < 0) return;
  const AdapterType type = slots_->spec().type;
  const int64_t each = type == AdapterType::kF16 ? 2 : 1, max_rank = slots_->spec().max_rank;
  const AdapterKernels& kernels = slots_->plan().tier().adapters;
  for (const Group& group : groups_) {
    const std::span<const Row> here = rows_among(group.rows, first_row, rows);
    if (here.empty()) continue;
    AdapterTerm terms[kMaxMix];
    int count_of_terms = 0;
    bool touched = false;
    for (const AdapterUse& use : *group.mix) {
      const AdapterPart& found = slots_->part(use.slot, target);
      touched |= found.rank > 0;
      terms[count_of_terms++] = {found.b + first * found.rank * each, found.rank, use.weight, found.scale,
                                 found.scales_rows ? found.row_scale + first : nullptr};
    }
    if (!touched) continue;
    for (size_t from = 0; from < here.size(); from += kAdapterRows) {
      const auto some = static_cast<int>(std::min<size_t>(kAdapterRows, here.size() - from));
      const float* t[kAdapterRows];
      float* to[kAdapterRows];
      for (int i = 0; i < some; ++i) {
        const Row& row = here[from + static_cast<size_t>(i)];
        t[i] = t_.data() + row.entry * t_stride_ + static_cast<int64_t>(part) * max_rank;
        to[i] = y + (row.row - first_row) * y_stride;
      }
      kernels.add(type, terms, count_of_terms, (count + 15) / 16, t, t_stride_, some, to);
    }
  }
}

}  // namespace niwaki
