#include "cpu/adapter_slots.h"

#include <algorithm>

#include "cpu/linear.h"
#include "cpu/matrix.h"
#include "cpu/tier.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr size_t kSmallPage = 4096;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "adapter: " + message);
}

}  // namespace

CpuAdapterSlots::CpuAdapterSlots(std::shared_ptr<const CpuPlan> plan, AdapterSlotsSpec spec)
    : plan_(std::move(plan)), kernels_(plan_->tier().adapters), targets_(std::move(spec)) {
  find_targets();
  reserve();
  filled_.resize(static_cast<size_t>(this->spec().slots));
}

void CpuAdapterSlots::find_targets() {
  const std::vector<std::string>& names = spec().targets;
  tensors_.resize(names.size());
  for (const LabeledOp& labeled : plan_->spec().ops) {
    std::vector<int32_t>& of_parts = ops_.emplace_back();
    const auto* op = std::get_if<LinearOp>(&labeled.op);
    if (op == nullptr) continue;
    for (const CpuMatrix::Part& part : cpu_matrix(*op->matrix).parts()) {
      const int32_t target = of_parts.emplace_back(targets_.find(part.name));
      if (target < 0) continue;
      const CpuMatrix::Part*& tensor = tensors_[static_cast<size_t>(target)];
      if (tensor != nullptr && tensor != &part) refuse("the plan has two tensors called " + part.name);
      tensor = &part;
    }
    if (std::all_of(of_parts.begin(), of_parts.end(), [](int32_t target) { return target < 0; }))
      of_parts.clear();
  }
  std::vector<Shape> shapes;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i] == nullptr) refuse("the plan multiplies by no tensor called " + names[i]);
    shapes.push_back({tensors_[i]->rows, tensors_[i]->columns});
  }
  targets_.lay_out(std::move(shapes));
}

void CpuAdapterSlots::reserve() {
  const auto slots = static_cast<size_t>(spec().slots);
  memory_ = PageMemory(slots * targets_.slot_bytes(), PageSize::kHuge, "adapter slots");
  auto* data = reinterpret_cast<uint8_t*>(memory_.data());
  for (size_t slot = 0; slot < slots; ++slot, data += targets_.slot_bytes()) {
    for (const AdapterTargets::Place& place : targets_.places()) {
      parts_.push_back({.a = data + place.a,
                        .b = data + place.b,
                        .rank_scale = reinterpret_cast<float*>(data + place.rank_scale),
                        .row_scale = reinterpret_cast<float*>(data + place.row_scale)});
    }
  }
}

void CpuAdapterSlots::populate(ThreadPool& pool) {
  const size_t size = memory_.size();
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>((size + kHugePage - 1) / kHugePage), 1, [&](int64_t begin, int64_t end) {
      const size_t last = std::min(static_cast<size_t>(end) * kHugePage, size);
      for (size_t at = static_cast<size_t>(begin) * kHugePage; at < last; at += kSmallPage)
        const_cast<volatile std::byte*>(memory_.data())[at] = std::byte{0};
    });
  });
}

void CpuAdapterSlots::load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter) {
  const std::vector<AdapterScales> scales = examine_adapter(kernels_, pool, targets_, adapter);
  for (size_t target = 0; target < shapes().size(); ++target)
    part(slot, static_cast<int32_t>(target)).rank = 0;
  std::vector<AdapterPart*> parts;
  for (const AdapterTarget& target : adapter) parts.push_back(&part(slot, targets_.index_of(target.tensor)));
  pack_adapter(kernels_, pool, targets_, adapter, scales, parts);
  filled_[static_cast<size_t>(slot)] = !adapter.empty();
}

std::vector<float> CpuAdapterSlots::row_norms(ThreadPool& pool, const AdapterTarget& target) const {
  const CpuMatrix::Part& tensor = *tensors_[static_cast<size_t>(targets_.index_of(target.tensor))];
  return adapter_row_norms(kernels_, pool, targets_, target,
                           [&](int64_t row, float* weights) { copy_row(tensor, row, weights); });
}

}  // namespace niwaki
