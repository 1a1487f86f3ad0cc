#include <algorithm>
#include <cstring>
#include <span>

#include "cuda/adapters.h"
#include "niwaki/error.h"

namespace niwaki::cuda {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "adapter: " + message);
}

size_t padded(int64_t count) {
  return static_cast<size_t>((count + 15) / 16 * 16);
}

/// Groups rows by their mixes, and the groups by kItemRows.
class StepPacker {
 public:
  explicit StepPacker(const Step& step) : step_(step) {}

  /// `sequences` has the sequence of each row.
  AdapterStep::Items add(std::span<const int32_t> sequences) {
    std::vector<Group> groups(1);  // the first without adapters
    size_t group = 0;              // of the row before, most often of this one as well
    for (size_t row = 0; row < sequences.size(); ++row) {
      if (row == 0 || sequences[row] != sequences[row - 1]) {
        const std::vector<AdapterUse>& mix = step_.sequences[static_cast<size_t>(sequences[row])].adapters;
        const auto found =
            std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.mix == mix; });
        group = static_cast<size_t>(found - groups.begin());
        if (found == groups.end()) groups.push_back({mix, {}});
      }
      groups[group].rows.push_back(static_cast<int32_t>(row));
    }
    AdapterStep::Items list{static_cast<int32_t>(items_.size()), 0, 0};
    int32_t entries = 0;
    for (size_t i = 1; i < groups.size(); ++i) add(groups[i], entries);
    list.adapted = static_cast<int32_t>(items_.size()) - list.first;
    add(groups[0], entries);
    list.all = static_cast<int32_t>(items_.size()) - list.first;
    return list;
  }

  std::vector<uint8_t> pack(AdapterStep::Items of_rows, AdapterStep::Items of_outputs) const {
    AdapterStep header{of_rows, of_outputs, 0, 0};
    std::vector<uint8_t> packed(sizeof header);
    const auto append = [&packed](const auto& values) {
      const auto at = static_cast<int32_t>(packed.size());
      packed.resize(packed.size() + values.size() * sizeof values[0]);
      if (!values.empty()) std::memcpy(packed.data() + at, values.data(), values.size() * sizeof values[0]);
      return at;
    };
    append(items_);
    header.rows_at = append(rows_);
    header.uses_at = append(uses_);
    std::memcpy(packed.data(), &header, sizeof header);
    return packed;
  }

 private:
  struct Group {
    std::vector<AdapterUse> mix;
    std::vector<int32_t> rows;
  };

  void add(const Group& group, int32_t& entries) {
    const auto count = static_cast<int32_t>(group.rows.size()), uses = static_cast<int32_t>(group.mix.size());
    const auto first_row = static_cast<int32_t>(rows_.size()), first_use = static_cast<int32_t>(uses_.size());
    for (int32_t first = 0; first < count; first += kItemRows) {
      const int32_t some = std::min(kItemRows, count - first);
      items_.push_back({first_row + first, some, first_use, uses, entries});
      entries += some * uses;
    }
    rows_.insert(rows_.end(), group.rows.begin(), group.rows.end());
    uses_.insert(uses_.end(), group.mix.begin(), group.mix.end());
  }

  const Step& step_;
  std::vector<AdapterItem> items_;
  std::vector<int32_t> rows_;
  std::vector<AdapterUse> uses_;
};

}  // namespace

CudaAdapterSlots::CudaAdapterSlots(const AdapterKernels& kernels, const std::vector<LinearTensor>& tensors,
                                   int32_t max_rows, int32_t max_outputs, AdapterSlotsSpec spec)
    : max_rows_(max_rows), max_outputs_(max_outputs), kernels_(kernels), targets_(std::move(spec)) {
  find_targets(tensors);
  const auto slots = static_cast<size_t>(this->spec().slots);
  states_.resize(slots * shapes().size());
  filled_.resize(slots);
  size_t floats = 0;
  for (const AdapterOp& op : ops_) {
    if (op.tensor_count > 0)
      floats = std::max(floats, adapter_floats(op, op.per_output ? max_outputs : max_rows));
  }
  slots_ = allocate(slots * targets_.slot_bytes());
  device_states_ = allocate(states_.size() * sizeof(AdapterState));
  t_ = allocate(floats * sizeof(float));
  niwaki::cuda::check(cudaMemcpy(device_states_.get(), states_.data(), states_.size() * sizeof(AdapterState),
                                 cudaMemcpyHostToDevice),
                      "emptying adapter slots");
  for (AdapterOp& op : ops_) {
    op.slots = static_cast<const uint8_t*>(slots_.get());
    op.states = static_cast<const AdapterState*>(device_states_.get());
    op.t = static_cast<float*>(t_.get());
  }
}

CudaAdapterSlots::Memory CudaAdapterSlots::allocate(size_t bytes) {
  void* memory = nullptr;
  niwaki::cuda::check(cudaMalloc(&memory, bytes),
                      "taking " + std::to_string(bytes) + " bytes for adapter slots");
  bytes_ += bytes;
  return Memory(memory);
}

void CudaAdapterSlots::find_targets(const std::vector<LinearTensor>& tensors) {
  std::vector<const LinearTensor*> of_targets(spec().targets.size());
  for (const LinearTensor& tensor : tensors) {
    const int32_t target = targets_.find(tensor.name);
    if (target >= 0) {
      const LinearTensor*& found = of_targets[static_cast<size_t>(target)];
      if (found != nullptr && (found->rows != tensor.rows || found->columns != tensor.columns))
        refuse("the plan has two tensors called " + tensor.name);
      found = &tensor;
    }
  }
  std::vector<Shape> shapes;
  for (size_t i = 0; i < of_targets.size(); ++i) {
    if (of_targets[i] == nullptr) refuse("the plan multiplies by no tensor called " + spec().targets[i]);
    shapes.push_back({of_targets[i]->rows, of_targets[i]->columns});
  }
  targets_.lay_out(std::move(shapes));

  for (size_t first = 0, last; first < tensors.size(); first = last) {
    const size_t index = tensors[first].op;
    for (last = first; last < tensors.size() && tensors[last].op == index;) ++last;
    const auto of_op = std::span(tensors).subspan(first, last - first);
    if (std::none_of(of_op.begin(), of_op.end(),
                     [&](const LinearTensor& t) { return targets_.find(t.name) >= 0; }))
      continue;
    if (of_op.size() > kMaxOpTensors) {
      refuse(of_op[0].name + " is stacked with more than " + std::to_string(kMaxOpTensors - 1) +
             " other tensors. Name no target among them.");
    }
    if (index >= ops_.size()) ops_.resize(index + 1);
    AdapterOp& op = ops_[index];
    op.columns = static_cast<int32_t>(of_op[0].columns);
    op.per_output = of_op[0].per_output;
    op.type = spec().type;
    op.targets = static_cast<int32_t>(this->shapes().size());
    op.ranks = static_cast<int32_t>(targets_.padded_rank());
    op.slot_bytes = targets_.slot_bytes();
    for (const LinearTensor& tensor : of_op) {
      AdapterOp::Tensor& to = op.tensors[op.tensor_count++];
      to.target = targets_.find(tensor.name);
      to.first_row = static_cast<int32_t>(tensor.first_row);
      to.rows = static_cast<int32_t>(tensor.rows);
      if (to.target < 0) continue;
      const AdapterTargets::Place& place = targets_.places()[static_cast<size_t>(to.target)];
      to.a = place.a, to.b = place.b, to.rank_scale = place.rank_scale, to.row_scale = place.row_scale;
    }
  }
}

void CudaAdapterSlots::load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter,
                            cudaStream_t stream) {
  const std::vector<AdapterScales> scales = examine_adapter(kernels_, pool, targets_, adapter);
  const size_t targets = shapes().size();
  AdapterState* states = &states_[static_cast<size_t>(slot) * targets];
  // Empty until everything has arrived.
  filled_[static_cast<size_t>(slot)] = false;
  std::fill_n(states, targets, AdapterState{});
  upload_states(stream, slot);
  for (size_t i = 0; i < adapter.size(); ++i) upload_target(pool, slot, adapter[i], scales[i], stream);
  for (const AdapterTarget& target : adapter)
    states[targets_.index_of(target.tensor)] = {target.rank, target.scale, target.row_scale.empty() ? 0 : 1};
  upload_states(stream, slot);
  filled_[static_cast<size_t>(slot)] = !adapter.empty();
}

void CudaAdapterSlots::upload_target(ThreadPool& pool, int32_t slot, const AdapterTarget& target,
                                     const AdapterScales& scales, cudaStream_t stream) {
  const Shape& shape = targets_.shape_of(target);
  const auto rank = static_cast<size_t>(target.rank);
  const size_t ranks = (rank + kAdapterRanks - 1) / kAdapterRanks * kAdapterRanks, rows = padded(shape.rows);
  std::vector<uint8_t> a(ranks * padded(shape.columns) * targets_.value_bytes());
  std::vector<uint8_t> b(rows * rank * targets_.value_bytes());
  std::vector<float> rank_scale(rank), row_scale(target.row_scale.empty() ? 0 : rows);
  AdapterPart part{
      .a = a.data(), .b = b.data(), .rank_scale = rank_scale.data(), .row_scale = row_scale.data()};
  AdapterPart* const parts[] = {&part};
  pack_adapter(kernels_, pool, targets_, {&target, 1}, {&scales, 1}, parts);

  const AdapterTargets::Place& place =
      targets_.places()[static_cast<size_t>(targets_.index_of(target.tensor))];
  const size_t begin = static_cast<size_t>(slot) * targets_.slot_bytes();
  upload(stream, begin + place.a, a.data(), a.size());
  upload(stream, begin + place.b, b.data(), b.size());
  upload(stream, begin + place.rank_scale, rank_scale.data(), rank * sizeof(float));
  upload(stream, begin + place.row_scale, row_scale.data(), row_scale.size() * sizeof(float));
  niwaki::cuda::check(cudaStreamSynchronize(stream), "loading an adapter");
}

void CudaAdapterSlots::upload(cudaStream_t stream, size_t at, const void* from, size_t bytes) {
  if (bytes == 0) return;
  niwaki::cuda::check(
      cudaMemcpyAsync(static_cast<uint8_t*>(slots_.get()) + at, from, bytes, cudaMemcpyHostToDevice, stream),
      "loading an adapter");
}

void CudaAdapterSlots::upload_states(cudaStream_t stream, int32_t slot) {
  const size_t targets = shapes().size(), first = static_cast<size_t>(slot) * targets;
  niwaki::cuda::check(
      cudaMemcpyAsync(static_cast<AdapterState*>(device_states_.get()) + first, &states_[first],
                      targets * sizeof(AdapterState), cudaMemcpyHostToDevice, stream),
      "loading an adapter");
  niwaki::cuda::check(cudaStreamSynchronize(stream), "loading an adapter");
}

std::vector<float> CudaAdapterSlots::row_norms(
    ThreadPool& pool, const AdapterTarget& target,
    const std::function<void(int64_t row, float* weights)>& copy_row) const {
  return adapter_row_norms(kernels_, pool, targets_, target, copy_row);
}

std::vector<uint8_t> CudaAdapterSlots::pack_step(const Step& step) const {
  std::vector<int32_t> of_rows, of_outputs;
  bool any = false;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const StepSequence& sequence = step.sequences[i];
    of_rows.insert(of_rows.end(), static_cast<size_t>(sequence.row_count), static_cast<int32_t>(i));
    any |= !sequence.adapters.empty();
    for (const AdapterUse& use : sequence.adapters) {
      if (holds_adapter(use.slot)) continue;
      throw Error(ErrorCode::kInvalidArgument, "step: sequence " + std::to_string(i) + " uses adapter slot " +
                                                   std::to_string(use.slot) + ", which is empty");
    }
  }
  if (!any) return {};
  for (const int32_t row : step.outputs) of_outputs.push_back(of_rows[static_cast<size_t>(row)]);
  StepPacker packer(step);
  const AdapterStep::Items rows = packer.add(of_rows), outputs = packer.add(of_outputs);
  return packer.pack(rows, outputs);
}

size_t CudaAdapterSlots::max_step_bytes() const {
  // Every row an item of its own, with the longest mix.
  const auto rows = static_cast<size_t>(max_rows_) + static_cast<size_t>(max_outputs_);
  return sizeof(AdapterStep) + rows * (sizeof(AdapterItem) + sizeof(int32_t) + kMaxMix * sizeof(AdapterUse));
}

void CudaAdapterSlots::project(size_t op, int32_t rows, const uint8_t* step, const float* x, int64_t x_stride,
                               cudaStream_t stream) const {
  if (touches(op)) launch_project(ops_[op], rows, step, x, x_stride, stream);
}

void CudaAdapterSlots::add(size_t op, int32_t rows, const uint8_t* step, const float* y, int64_t y_stride,
                           float* out, int64_t out_stride, bool accumulate, cudaStream_t stream) const {
  if (touches(op)) launch_add(ops_[op], rows, step, y, y_stride, out, out_stride, accumulate, stream);
}

}  // namespace niwaki::cuda
