#include "cpu/adapter_slots.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

#include "cpu/linear.h"
#include "cpu/matrix.h"
#include "cpu/tier.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallPage = 4096;
constexpr float kBeyondHalf = 65520.0f;  // rounds to infinity
/// Values that a thread takes at a time when it loads an adapter.
constexpr int64_t kPackValues = 65536;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
int64_t padded(int64_t count) {
  return (count + 15) / 16 * 16;
}
size_t value_bytes(DataType type) {
  return static_cast<size_t>(info(type).block_bytes);
}
size_t slot_bytes(AdapterType type) {
  return type == AdapterType::kF16 ? 2 : 1;
}

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "adapter: " + message);
}
std::string number(int64_t n) {
  return std::to_string(n);
}

/// Raises `to` to `value`; both are at least 0.
void raise(std::atomic<float>& to, float value) {
  float seen = to.load(std::memory_order_relaxed);
  while (value > seen && !to.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

}  // namespace

/// Of a target: what its integers are multiplied by, and what they mean.
struct CpuAdapterSlots::Scales {
  std::vector<float> a_inverse, b_inverse;  // of each rank
  std::vector<float> rank;
};

CpuAdapterSlots::CpuAdapterSlots(std::shared_ptr<const CpuPlan> plan, AdapterSlotsSpec spec)
    : plan_(std::move(plan)), spec_(std::move(spec)), kernels_(plan_->tier().adapters) {
  if (spec_.slots < 1 || spec_.slots > 4096) refuse("slots must be 1 to 4096, got " + number(spec_.slots));
  if (spec_.max_rank < 1 || spec_.max_rank > 4096)
    refuse("max_rank must be 1 to 4096, got " + number(spec_.max_rank));
  if (spec_.targets.empty()) refuse("there must be a target");
  find_targets();
  reserve();
  filled_.resize(static_cast<size_t>(spec_.slots));
}

void CpuAdapterSlots::find_targets() {
  for (const std::string& name : spec_.targets) {
    if (!targets_.emplace(name, static_cast<int32_t>(targets_.size())).second)
      refuse("the target " + name + " is named twice");
  }
  tensors_.resize(targets_.size());
  for (const LabeledOp& labeled : plan_->spec().ops) {
    std::vector<int32_t>& of_parts = ops_.emplace_back();
    const auto* op = std::get_if<LinearOp>(&labeled.op);
    if (op == nullptr) continue;
    for (const CpuMatrix::Part& part : cpu_matrix(*op->matrix).parts()) {
      const auto found = targets_.find(part.name);
      of_parts.push_back(found == targets_.end() ? -1 : found->second);
      if (found == targets_.end()) continue;
      const CpuMatrix::Part*& tensor = tensors_[static_cast<size_t>(found->second)];
      if (tensor != nullptr && tensor != &part) refuse("the plan has two tensors called " + part.name);
      tensor = &part;
    }
    if (std::all_of(of_parts.begin(), of_parts.end(), [](int32_t target) { return target < 0; }))
      of_parts.clear();
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (tensors_[i] == nullptr) refuse("the plan multiplies by no tensor called " + spec_.targets[i]);
    shapes_.push_back({tensors_[i]->rows, tensors_[i]->columns});
  }
}

void CpuAdapterSlots::reserve() {
  size_t total = 0;
  const auto take = [&total](size_t count, size_t each) {
    const size_t offset = total;
    size_t bytes;
    if (__builtin_mul_overflow(count, each, &bytes) ||
        __builtin_add_overflow(total, aligned(bytes), &total) || total >= size_t{1} << 47) {
      throw Error(ErrorCode::kOutOfMemory, "adapter: its slots are more than can be addressed");
    }
    return offset;
  };
  const auto rank = static_cast<size_t>(padded_rank());
  const size_t each = slot_bytes(spec_.type);
  struct Offsets {
    size_t a, b, rank_scale, row_scale;
  };
  std::vector<Offsets> offsets;
  for (int32_t slot = 0; slot < spec_.slots; ++slot) {
    for (const Shape& shape : shapes_) {
      const auto rows = static_cast<size_t>(padded(shape.rows)),
                 columns = static_cast<size_t>(padded(shape.columns));
      offsets.push_back({take(columns * rank, each), take(rows * rank, each), take(rank, sizeof(float)),
                         take(rows, sizeof(float))});
    }
  }
  memory_ = PageMemory(total, PageSize::kHuge, "adapter slots");
  auto* data = reinterpret_cast<uint8_t*>(memory_.data());
  for (const Offsets& at : offsets) {
    parts_.push_back({.a = data + at.a,
                      .b = data + at.b,
                      .rank_scale = reinterpret_cast<float*>(data + at.rank_scale),
                      .row_scale = reinterpret_cast<float*>(data + at.row_scale)});
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

int32_t CpuAdapterSlots::target_named(const std::string& tensor) const {
  const auto found = targets_.find(tensor);
  if (found == targets_.end()) refuse("the slots have no target called " + tensor);
  return found->second;
}

void CpuAdapterSlots::check(const AdapterTarget& target) const {
  const Shape& shape = shapes_[static_cast<size_t>(target_named(target.tensor))];
  if (target.rank < 1 || target.rank > spec_.max_rank) {
    refuse(target.tensor + ": rank must be 1 to " + number(spec_.max_rank) + ", got " + number(target.rank));
  }
  if (!std::isfinite(target.scale))
    refuse(target.tensor + ": scale must be finite, got " + std::to_string(target.scale));
  const auto check_matrix = [&](const char* what, const AdapterMatrix& matrix, int64_t rows,
                                int64_t columns) {
    if (matrix.type != DataType::kF32 && matrix.type != DataType::kF16 && matrix.type != DataType::kBF16)
      refuse(target.tensor + ": " + what + " must be F32, F16 or BF16, got " + info(matrix.type).name);
    const size_t bytes = static_cast<size_t>(rows * columns) * value_bytes(matrix.type);
    if (matrix.data.size() != bytes) {
      refuse(target.tensor + ": " + what + " must be " + number(rows) + " x " + number(columns) + " of " +
             info(matrix.type).name + ", " + std::to_string(bytes) + " bytes, got " +
             std::to_string(matrix.data.size()));
    }
  };
  check_matrix("A", target.a, target.rank, shape.columns);
  check_matrix("B", target.b, shape.rows, target.rank);
  if (target.row_scale.empty()) return;
  if (static_cast<int64_t>(target.row_scale.size()) != shape.rows) {
    refuse(target.tensor + ": row_scale must have " + number(shape.rows) + " values, got " +
           std::to_string(target.row_scale.size()));
  }
  for (size_t r = 0; r < target.row_scale.size(); ++r) {
    if (!std::isfinite(target.row_scale[r])) {
      throw Error(ErrorCode::kNonFinite,
                  "adapter: " + target.tensor + ": row_scale " + std::to_string(r) + " is NaN or infinite");
    }
  }
}

void CpuAdapterSlots::check(int32_t slot, const std::vector<AdapterTarget>& adapter) const {
  if (slot < 0 || slot >= spec_.slots)
    refuse("slot must be 0 to " + number(spec_.slots - 1) + ", got " + number(slot));
  std::vector<bool> seen(shapes_.size());
  for (const AdapterTarget& target : adapter) {
    check(target);
    const auto index = static_cast<size_t>(target_named(target.tensor));
    if (seen[index]) refuse(target.tensor + " is there twice");
    seen[index] = true;
  }
}

namespace {

/// A part of an adapter's matrix that one thread takes: rows of A, or of B.
struct Piece {
  size_t target;
  bool is_b;
  int64_t begin, end;
};

std::vector<Piece> pieces_of(const std::vector<AdapterTarget>& adapter,
                             const std::vector<AdapterSlots::Shape>& shapes) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < adapter.size(); ++i) {
    const auto cut = [&](bool is_b, int64_t rows, int64_t step) {
      for (int64_t begin = 0; begin < rows; begin += step)
        pieces.push_back({i, is_b, begin, std::min(begin + step, rows)});
    };
    cut(false, adapter[i].rank, std::max<int64_t>(1, kPackValues / shapes[i].columns));
    cut(true, shapes[i].rows, std::max<int64_t>(16, kPackValues / adapter[i].rank / 16 * 16));
  }
  return pieces;
}

template <class F>
void each_piece(ThreadPool& pool, const std::vector<Piece>& pieces, F&& f) {
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>(pieces.size()), 1,
                [&](int64_t i, int64_t) { f(pieces[static_cast<size_t>(i)]); });
  });
}

/// What is wrong with a matrix whose largest magnitude (NaN: it has a value that is not finite) is this.
void require_in_range(const AdapterTarget& target, const char* what, float largest, AdapterType type) {
  if (!std::isfinite(largest)) {
    throw Error(ErrorCode::kNonFinite,
                "adapter: " + target.tensor + ": " + what +
                    " has a value that is NaN or infinite. The file is damaged or its training diverged.");
  }
  if (type == AdapterType::kF16 && largest >= kBeyondHalf) {
    throw Error(ErrorCode::kNonFinite, "adapter: " + target.tensor + ": " + what +
                                           " has a value of magnitude " + std::to_string(largest) +
                                           ", and float16 ends at 65504. Slots of 8-bit integers hold it.");
  }
}

}  // namespace

void CpuAdapterSlots::load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter) {
  const std::vector<Scales> scales = examine(pool, adapter);
  for (size_t target = 0; target < shapes_.size(); ++target)
    part(slot, static_cast<int32_t>(target)).rank = 0;
  pack(pool, adapter, scales, slot);
  filled_[static_cast<size_t>(slot)] = !adapter.empty();
}

/// Reads the adapter through before anything is changed.
std::vector<CpuAdapterSlots::Scales> CpuAdapterSlots::examine(
    ThreadPool& pool, const std::vector<AdapterTarget>& adapter) const {
  std::vector<Shape> shapes;
  std::vector<size_t> first;  // of a target's ranks, among all
  size_t ranks = 0;
  for (const AdapterTarget& target : adapter) {
    shapes.push_back(shapes_[static_cast<size_t>(target_named(target.tensor))]);
    first.push_back(ranks);
    ranks += static_cast<size_t>(target.rank);
  }
  std::vector<std::atomic<float>> a_largest(ranks), b_largest(ranks);
  std::vector<std::atomic<bool>> b_spoiled(adapter.size());
  each_piece(pool, pieces_of(adapter, shapes), [&](const Piece& piece) {
    const AdapterTarget& target = adapter[piece.target];
    const AdapterMatrix& matrix = piece.is_b ? target.b : target.a;
    const int64_t columns = piece.is_b ? target.rank : shapes[piece.target].columns;
    const uint8_t* from =
        matrix.data.data() + static_cast<size_t>(piece.begin * columns) * value_bytes(matrix.type);
    if (piece.is_b) {
      std::vector<float> largest(static_cast<size_t>(columns));
      if (!kernels_.largest_of_columns(matrix.type, from, piece.end - piece.begin, columns, largest.data()))
        b_spoiled[piece.target] = true;
      for (size_t k = 0; k < largest.size(); ++k) raise(b_largest[first[piece.target] + k], largest[k]);
    } else {
      for (int64_t k = piece.begin; k < piece.end; ++k) {
        a_largest[first[piece.target] + static_cast<size_t>(k)] =
            kernels_.largest_value(matrix.type, from, columns);
        from += static_cast<size_t>(columns) * value_bytes(matrix.type);
      }
    }
  });

  std::vector<Scales> all;
  for (size_t i = 0; i < adapter.size(); ++i) {
    const AdapterTarget& target = adapter[i];
    Scales& scales = all.emplace_back();
    if (b_spoiled[i]) require_in_range(target, "B", NAN, spec_.type);
    for (size_t k = 0; k < static_cast<size_t>(target.rank); ++k) {
      require_in_range(target, "A", a_largest[first[i] + k], spec_.type);
      require_in_range(target, "B", b_largest[first[i] + k], spec_.type);
      float scale = 1;
      const auto inverse_of = [&scale](float largest) {
        const float inverse = 127 / largest;
        if (!std::isfinite(inverse)) return scale = 0.0f;  // nothing, or next to it
        scale *= largest / 127;
        return inverse;
      };
      if (spec_.type == AdapterType::kI8) {
        scales.a_inverse.push_back(inverse_of(a_largest[first[i] + k]));
        scales.b_inverse.push_back(inverse_of(b_largest[first[i] + k]));
        require_in_range(target, "B A", scale, spec_.type);
      }
      scales.rank.push_back(scale);
    }
  }
  return all;
}

void CpuAdapterSlots::pack(ThreadPool& pool, const std::vector<AdapterTarget>& adapter,
                           const std::vector<Scales>& scales, int32_t slot) {
  std::vector<Shape> shapes;
  std::vector<AdapterPart*> parts;
  for (size_t i = 0; i < adapter.size(); ++i) {
    const AdapterTarget& target = adapter[i];
    const int32_t index = target_named(target.tensor);
    const Shape& shape = shapes.emplace_back(shapes_[static_cast<size_t>(index)]);
    AdapterPart& to = *parts.emplace_back(&part(slot, index));
    to.rank = target.rank;
    to.scale = target.scale;
    std::copy(scales[i].rank.begin(), scales[i].rank.end(), to.rank_scale);
    to.scales_rows = !target.row_scale.empty();
    if (to.scales_rows) {
      std::copy(target.row_scale.begin(), target.row_scale.end(), to.row_scale);
      std::fill(to.row_scale + shape.rows, to.row_scale + padded(shape.rows), 1.0f);
    }
  }
  const size_t each = slot_bytes(spec_.type);
  each_piece(pool, pieces_of(adapter, shapes), [&](const Piece& piece) {
    const AdapterTarget& target = adapter[piece.target];
    const AdapterMatrix& matrix = piece.is_b ? target.b : target.a;
    const AdapterPart& to = *parts[piece.target];
    const int64_t columns = piece.is_b ? target.rank : shapes[piece.target].columns;
    const size_t row_bytes = static_cast<size_t>(columns) * value_bytes(matrix.type);
    const uint8_t* from = matrix.data.data() + static_cast<size_t>(piece.begin) * row_bytes;
    if (piece.is_b) {
      for (int64_t r = piece.begin; r < piece.end; r += 16, from += 16 * row_bytes) {
        kernels_.pack_b(spec_.type, matrix.type, from, static_cast<int>(std::min<int64_t>(16, piece.end - r)),
                        target.rank, scales[piece.target].b_inverse.data(),
                        to.b + static_cast<size_t>(r * columns) * each);
      }
    } else {
      for (int64_t k = piece.begin; k < piece.end; ++k, from += row_bytes) {
        const int64_t lane = k % kAdapterRanks, at = (k - lane) * padded(columns) + lane * 16;
        const float inverse =
            spec_.type == AdapterType::kI8 ? scales[piece.target].a_inverse[static_cast<size_t>(k)] : 1;
        kernels_.pack_a(spec_.type, matrix.type, from, columns, inverse,
                        to.a + static_cast<size_t>(at) * each);
      }
    }
  });
}

std::vector<float> CpuAdapterSlots::row_norms(ThreadPool& pool, const AdapterTarget& target) const {
  const auto index = static_cast<size_t>(target_named(target.tensor));
  const Shape shape = shapes_[index];
  const int64_t stride = padded(shape.columns), rank = target.rank;
  std::vector<float> a(static_cast<size_t>(rank * stride));
  for (int64_t k = 0; k < rank; ++k) {
    kernels_.widen(target.a.type,
                   target.a.data.data() + static_cast<size_t>(k * shape.columns) * value_bytes(target.a.type),
                   shape.columns, a.data() + k * stride);
  }
  std::vector<float> norms(static_cast<size_t>(shape.rows));
  pool.parallel([&](Worker& worker) {
    std::vector<float> w(static_cast<size_t>(stride)), sb(static_cast<size_t>(rank));
    worker.each(shape.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        copy_row(*tensors_[index], r, w.data());
        kernels_.widen(target.b.type,
                       target.b.data.data() + static_cast<size_t>(r * rank) * value_bytes(target.b.type),
                       rank, sb.data());
        for (float& value : sb) value *= target.scale;
        norms[static_cast<size_t>(r)] =
            kernels_.row_norm(w.data(), shape.columns, a.data(), stride, sb.data(), static_cast<int>(rank));
      }
    });
  });
  for (size_t r = 0; r < norms.size(); ++r) {
    if (std::isfinite(norms[r])) continue;
    throw Error(ErrorCode::kNonFinite, "adapter: " + target.tensor + ": the norm of row " +
                                           std::to_string(r) + " of W + scale B A is NaN or infinite");
  }
  return norms;
}

}  // namespace niwaki
