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

bool RowAdapters::touch(size_t op) const {
  if (entries_ == 0) return false;
  for (size_t slot = 0; slot < rows_of_slot_.size(); ++slot) {
    if (rows_of_slot_[slot].empty()) continue;
    for (const int32_t target : slots_->of_op(op)) {
      if (target >= 0 && slots_->part(static_cast<int32_t>(slot), target).rank > 0) return true;
    }
  }
  return false;
}

bool RowAdapters::begin(size_t op) {
  if (entries_ == 0) return false;
  targets_ = &slots_->of_op(op);
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
  terms_.clear();
  addends_.clear();
  tiles_.clear();
  t_stride_ = parts * slots_->padded_rank();
  if (t_.size() < static_cast<size_t>(entries_ * t_stride_))
    t_.resize(static_cast<size_t>(entries_ * t_stride_));
  return true;
}

void RowAdapters::project(Worker& worker, const float* x, int64_t x_stride) {
  const AdapterType type = slots_->spec().type;
  const int64_t row_bytes = (columns_ + 15) / 16 * 16 * (type == AdapterType::kF16 ? 2 : 1);
  const AdapterKernels& kernels = slots_->plan().tier().adapters;
  worker.each(static_cast<int64_t>(items_.size()), 1, [&](int64_t i, int64_t) {
    const Item& item = items_[static_cast<size_t>(i)];
    const float* from[kAdapterRows];
    float* to[kAdapterRows];
    for (int32_t r = 0; r < item.count; ++r) {
      from[r] = x + item.rows[r].row * x_stride;
      to[r] =
          t_.data() + item.rows[r].entry * t_stride_ + item.part_index * slots_->padded_rank() + item.rank;
    }
    kernels.project(type, item.part->a + item.rank * row_bytes, columns_, item.part->rank_scale + item.rank,
                    from, item.count, to);
  });
}

size_t RowAdapters::begin_tile(int64_t first, int64_t count) {
  const size_t first_addend = addends_.size();
  const auto before = [](const Row& r, int64_t row) { return r.row < row; };
  for (const Group& group : groups_) {
    const auto begin = std::lower_bound(group.rows.begin(), group.rows.end(), first, before);
    const auto end = std::lower_bound(begin, group.rows.end(), first + count, before);
    if (begin == end) continue;
    for (size_t part = 0; part < targets_->size(); ++part) {
      const int32_t target = (*targets_)[part];
      if (target < 0) continue;
      const size_t first_term = terms_.size();
      bool touched = false;
      for (const AdapterUse& use : *group.mix) {
        const AdapterPart& found = slots_->part(use.slot, target);
        touched |= found.rank > 0;
        terms_.push_back(
            {found.b, found.rank, use.weight, found.scale, found.scales_rows ? found.row_scale : nullptr});
      }
      if (!touched) continue;
      for (auto row = begin; row < end; row += kAdapterRows) {
        const auto some = static_cast<int>(std::min<int64_t>(kAdapterRows, end - row));
        addends_.push_back({part, first_term, static_cast<int>(group.mix->size()), &*row, some});
      }
    }
  }
  tiles_.push_back({first, first_addend, addends_.size()});
  return tiles_.size() - 1;
}

void RowAdapters::prefetch(size_t tile, size_t part, int64_t first, int64_t count) const {
  const int64_t each = slots_->spec().type == AdapterType::kF16 ? 2 : 1;
  for (const Addend& addend : addends_of(tiles_[tile])) {
    if (addend.part != part) continue;
    for (int j = 0; j < addend.terms; ++j) {
      const AdapterTerm& term = terms_[addend.first_term + static_cast<size_t>(j)];
      const uint8_t* b = term.b + first * term.rank * each;
      for (int64_t at = 0; at < count * term.rank * each; at += 64) __builtin_prefetch(b + at);
    }
  }
}

void RowAdapters::add(size_t tile, size_t part, int64_t first, int64_t count, float* y,
                      int64_t y_stride) const {
  const AdapterKernels& kernels = slots_->plan().tier().adapters;
  const float* t_of_part = t_.data() + static_cast<int64_t>(part) * slots_->padded_rank();
  for (const Addend& addend : addends_of(tiles_[tile])) {
    if (addend.part != part) continue;
    const float* t[kAdapterRows];
    float* to[kAdapterRows];
    for (int i = 0; i < addend.count; ++i) {
      t[i] = t_of_part + addend.rows[i].entry * t_stride_;
      to[i] = y + (addend.rows[i].row - tiles_[tile].first_row) * y_stride;
    }
    kernels.add(slots_->spec().type, terms_.data() + addend.first_term, addend.terms, first / 16,
                (count + 15) / 16, t, t_stride_, addend.count, to);
  }
}

}  // namespace niwaki
