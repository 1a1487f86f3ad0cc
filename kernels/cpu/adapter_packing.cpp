#include "cpu/adapter_packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr size_t kAlignment = 64;
constexpr float kBeyondHalf = 65520.0f;  // rounds to infinity
/// Values that a thread takes at a time when it loads an adapter.
constexpr int64_t kPackValues = 65536;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}
int64_t padded(int64_t count) {
  return (count + 15) / 16 * 16;
}
size_t file_bytes(DataType type) {
  return static_cast<size_t>(info(type).block_bytes);
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

AdapterTargets::AdapterTargets(AdapterSlotsSpec spec) : spec_(std::move(spec)) {
  if (spec_.slots < 1 || spec_.slots > 4096) refuse("slots must be 1 to 4096, got " + number(spec_.slots));
  if (spec_.max_rank < 1 || spec_.max_rank > 4096)
    refuse("max_rank must be 1 to 4096, got " + number(spec_.max_rank));
  if (spec_.targets.empty()) refuse("there must be a target");
  for (const std::string& name : spec_.targets) {
    if (!index_.emplace(name, static_cast<int32_t>(index_.size())).second)
      refuse("the target " + name + " is named twice");
  }
}

int32_t AdapterTargets::find(const std::string& tensor) const {
  const auto found = index_.find(tensor);
  return found == index_.end() ? -1 : found->second;
}

int32_t AdapterTargets::index_of(const std::string& tensor) const {
  const int32_t index = find(tensor);
  if (index < 0) refuse("the slots have no target called " + tensor);
  return index;
}

void AdapterTargets::lay_out(std::vector<Shape> shapes) {
  shapes_ = std::move(shapes);
  const auto fail = [] {
    throw Error(ErrorCode::kOutOfMemory, "adapter: its slots are more than can be addressed");
  };
  const auto take = [&](size_t count, size_t each) {
    const size_t offset = slot_bytes_;
    size_t bytes;
    if (__builtin_mul_overflow(count, each, &bytes) ||
        __builtin_add_overflow(slot_bytes_, aligned(bytes), &slot_bytes_) || slot_bytes_ >= size_t{1} << 47)
      fail();
    return offset;
  };
  const auto rank = static_cast<size_t>(padded_rank());
  for (const Shape& shape : shapes_) {
    const auto rows = static_cast<size_t>(padded(shape.rows)),
               columns = static_cast<size_t>(padded(shape.columns));
    Place& place = places_.emplace_back();
    place.a = take(columns * rank, value_bytes());
    place.b = take(rows * rank, value_bytes());
    place.rank_scale = take(rank, sizeof(float));
    place.row_scale = take(rows, sizeof(float));
  }
  size_t total;
  if (__builtin_mul_overflow(slot_bytes_, static_cast<size_t>(spec_.slots), &total) || total >= size_t{1}
                                                                                                    << 47)
    fail();
}

void AdapterTargets::check(const AdapterTarget& target) const {
  const Shape& shape = shapes_[static_cast<size_t>(index_of(target.tensor))];
  if (target.rank < 1 || target.rank > spec_.max_rank) {
    refuse(target.tensor + ": rank must be 1 to " + number(spec_.max_rank) + ", got " + number(target.rank));
  }
  if (!std::isfinite(target.scale))
    refuse(target.tensor + ": scale must be finite, got " + std::to_string(target.scale));
  const auto check_matrix = [&](const char* what, const AdapterMatrix& matrix, int64_t rows,
                                int64_t columns) {
    if (matrix.type != DataType::kF32 && matrix.type != DataType::kF16 && matrix.type != DataType::kBF16)
      refuse(target.tensor + ": " + what + " must be F32, F16 or BF16, got " + info(matrix.type).name);
    const size_t bytes = static_cast<size_t>(rows * columns) * file_bytes(matrix.type);
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

void AdapterTargets::check(int32_t slot, const std::vector<AdapterTarget>& adapter) const {
  if (slot < 0 || slot >= spec_.slots)
    refuse("slot must be 0 to " + number(spec_.slots - 1) + ", got " + number(slot));
  std::vector<bool> seen(shapes_.size());
  for (const AdapterTarget& target : adapter) {
    check(target);
    const auto index = static_cast<size_t>(index_of(target.tensor));
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

std::vector<Piece> pieces_of(std::span<const AdapterTarget> adapter,
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

std::vector<AdapterScales> examine_adapter(const AdapterKernels& kernels, ThreadPool& pool,
                                           const AdapterTargets& targets,
                                           std::span<const AdapterTarget> adapter) {
  const AdapterType type = targets.spec().type;
  std::vector<AdapterSlots::Shape> shapes;
  std::vector<size_t> first;  // of a target's ranks, among all
  size_t ranks = 0;
  for (const AdapterTarget& target : adapter) {
    shapes.push_back(targets.shape_of(target));
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
        matrix.data.data() + static_cast<size_t>(piece.begin * columns) * file_bytes(matrix.type);
    if (piece.is_b) {
      std::vector<float> largest(static_cast<size_t>(columns));
      if (!kernels.largest_of_columns(matrix.type, from, piece.end - piece.begin, columns, largest.data()))
        b_spoiled[piece.target] = true;
      for (size_t k = 0; k < largest.size(); ++k) raise(b_largest[first[piece.target] + k], largest[k]);
    } else {
      for (int64_t k = piece.begin; k < piece.end; ++k) {
        a_largest[first[piece.target] + static_cast<size_t>(k)] =
            kernels.largest_value(matrix.type, from, columns);
        from += static_cast<size_t>(columns) * file_bytes(matrix.type);
      }
    }
  });

  std::vector<AdapterScales> all;
  for (size_t i = 0; i < adapter.size(); ++i) {
    const AdapterTarget& target = adapter[i];
    AdapterScales& scales = all.emplace_back();
    if (b_spoiled[i]) require_in_range(target, "B", NAN, type);
    for (size_t k = 0; k < static_cast<size_t>(target.rank); ++k) {
      require_in_range(target, "A", a_largest[first[i] + k], type);
      require_in_range(target, "B", b_largest[first[i] + k], type);
      float scale = 1;
      const auto inverse_of = [&scale](float largest) {
        const float inverse = 127 / largest;
        if (!std::isfinite(inverse)) return scale = 0.0f;  // nothing, or next to it
        scale *= largest / 127;
        return inverse;
      };
      if (type == AdapterType::kI8) {
        scales.a_inverse.push_back(inverse_of(a_largest[first[i] + k]));
        scales.b_inverse.push_back(inverse_of(b_largest[first[i] + k]));
        require_in_range(target, "B A", scale, type);
      }
      scales.rank.push_back(scale);
    }
  }
  return all;
}

void pack_adapter(const AdapterKernels& kernels, ThreadPool& pool, const AdapterTargets& targets,
                  std::span<const AdapterTarget> adapter, std::span<const AdapterScales> scales,
                  std::span<AdapterPart* const> parts) {
  const AdapterType type = targets.spec().type;
  std::vector<AdapterSlots::Shape> shapes;
  for (size_t i = 0; i < adapter.size(); ++i) {
    const AdapterTarget& target = adapter[i];
    const AdapterSlots::Shape& shape = shapes.emplace_back(targets.shape_of(target));
    AdapterPart& to = *parts[i];
    to.rank = target.rank;
    to.scale = target.scale;
    std::copy(scales[i].rank.begin(), scales[i].rank.end(), to.rank_scale);
    to.scales_rows = !target.row_scale.empty();
    if (to.scales_rows) {
      std::copy(target.row_scale.begin(), target.row_scale.end(), to.row_scale);
      std::fill(to.row_scale + shape.rows, to.row_scale + padded(shape.rows), 1.0f);
    }
  }
  const size_t each = targets.value_bytes();
  each_piece(pool, pieces_of(adapter, shapes), [&](const Piece& piece) {
    const AdapterTarget& target = adapter[piece.target];
    const AdapterMatrix& matrix = piece.is_b ? target.b : target.a;
    const AdapterPart& to = *parts[piece.target];
    const int64_t columns = piece.is_b ? target.rank : shapes[piece.target].columns;
    const size_t row_bytes = static_cast<size_t>(columns) * file_bytes(matrix.type);
    const uint8_t* from = matrix.data.data() + static_cast<size_t>(piece.begin) * row_bytes;
    if (piece.is_b) {
      for (int64_t r = piece.begin; r < piece.end; r += 16, from += 16 * row_bytes) {
        kernels.pack_b(type, matrix.type, from, static_cast<int>(std::min<int64_t>(16, piece.end - r)),
                       target.rank, scales[piece.target].b_inverse.data(),
                       to.b + static_cast<size_t>(r * columns) * each);
      }
    } else {
      for (int64_t k = piece.begin; k < piece.end; ++k, from += row_bytes) {
        const int64_t lane = k % kAdapterRanks, at = (k - lane) * padded(columns) + lane * 16;
        const float inverse =
            type == AdapterType::kI8 ? scales[piece.target].a_inverse[static_cast<size_t>(k)] : 1;
        kernels.pack_a(type, matrix.type, from, columns, inverse, to.a + static_cast<size_t>(at) * each);
      }
    }
  });
}

std::vector<float> adapter_row_norms(const AdapterKernels& kernels, ThreadPool& pool,
                                     const AdapterTargets& targets, const AdapterTarget& target,
                                     const std::function<void(int64_t row, float* weights)>& copy_row) {
  const AdapterSlots::Shape shape = targets.shape_of(target);
  const int64_t stride = padded(shape.columns), rank = target.rank;
  std::vector<float> a(static_cast<size_t>(rank * stride));
  for (int64_t k = 0; k < rank; ++k) {
    kernels.widen(target.a.type,
                  target.a.data.data() + static_cast<size_t>(k * shape.columns) * file_bytes(target.a.type),
                  shape.columns, a.data() + k * stride);
  }
  std::vector<float> norms(static_cast<size_t>(shape.rows));
  pool.parallel([&](Worker& worker) {
    std::vector<float> w(static_cast<size_t>(stride)), sb(static_cast<size_t>(rank));
    worker.each(shape.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        copy_row(r, w.data());
        kernels.widen(target.b.type,
                      target.b.data.data() + static_cast<size_t>(r * rank) * file_bytes(target.b.type), rank,
                      sb.data());
        for (float& value : sb) value *= target.scale;
        norms[static_cast<size_t>(r)] =
            kernels.row_norm(w.data(), shape.columns, a.data(), stride, sb.data(), static_cast<int>(rank));
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
