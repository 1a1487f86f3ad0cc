#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/matrix_part.h"
#include "cpu/thread_pool.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

/// Whether no float, of `count` that lie `stride` bytes apart, has all bits of its exponent set.
template <class Bits>
inline bool all_finite(const uint8_t* p, int64_t count, int64_t stride, Bits exponent) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, p + i * stride, sizeof bits);
    bad |= static_cast<uint32_t>((bits & exponent) == exponent);
  }
  return bad == 0;
}

/// Whether every float of a row (its scales, for the types that have them) is finite.
bool row_is_finite(DataType type, const uint8_t* row, int64_t columns) {
  const DataTypeInfo& t = info(type);
  switch (type) {
    case DataType::kF32:
      return all_finite<uint32_t>(row, columns, 4, 0x7f800000u);
    case DataType::kF16:
      return all_finite<uint16_t>(row, columns, 2, 0x7c00u);
    case DataType::kBF16:
      return all_finite<uint16_t>(row, columns, 2, 0x7f80u);
    default:
      return all_finite<uint16_t>(row, columns / t.block, t.block_bytes, 0x7c00u);
  }
}

/// Packs 64 rows (fewer at the end) of a sign type.
void pack_block(DataType type, const uint8_t* rows, size_t row_size, int64_t count, int64_t groups,
                uint8_t* out) {
  const SignLayout layout = sign_layout(type);
  const int64_t group_bytes = 2 + layout.byte_columns;
  for (int64_t g = 0; g < groups; ++g) {
    uint8_t* block = out + g * layout.block_bytes();
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* source = rows + static_cast<size_t>(r) * row_size + g * group_bytes;
      uint8_t* target = block + sign_position(static_cast<int>(r));
      for (int p = 0; p < layout.byte_columns; ++p) target[p * kBlockRows] = source[2 + p];
      std::memcpy(block + layout.byte_columns * kBlockRows + 2 * r, source, 2);
    }
  }
}

void lower(std::atomic<int64_t>& minimum, int64_t value) {
  int64_t current = minimum.load();
  while (value < current && !minimum.compare_exchange_weak(current, value)) {
  }
}

Matrix::Part pack_part(const MatrixSource& source, int64_t columns, ThreadPool& pool) {
  Matrix::Part part{source.name, source.type, source.rows, columns, 0, {}};
  const size_t row_size = row_bytes(source.type, columns);
  if (!is_sign_type(source.type)) {
    const bool plain = info(source.type).block == 1;
    part.row_stride = plain ? row_bytes(source.type, padded_columns(columns)) : row_size;
  }
  part.memory =
      MatrixMemory(is_sign_type(source.type) ? static_cast<size_t>(part.blocks()) * part.block_stride()
                                             : static_cast<size_t>(part.rows) * part.row_stride);
  std::atomic<int64_t> bad_row{INT64_MAX};
  pool.parallel([&](Worker& worker) {
    worker.each(part.blocks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t first = b * kBlockRows;
        const int64_t count = std::min<int64_t>(kBlockRows, part.rows - first);
        const uint8_t* rows = source.data + static_cast<size_t>(first) * row_size;
        uint8_t* out = part.memory.data() + static_cast<size_t>(b) * part.block_stride();
        for (int64_t r = 0; r < count; ++r) {
          const uint8_t* row = rows + static_cast<size_t>(r) * row_size;
          if (!row_is_finite(source.type, row, columns)) lower(bad_row, first + r);
          if (!is_sign_type(source.type))
            std::memcpy(out + static_cast<size_t>(r) * part.row_stride, row, row_size);
        }
        if (is_sign_type(source.type)) {
          pack_block(source.type, rows, row_size, count, columns / sign_layout(source.type).columns, out);
        }
      }
    });
  });
  if (bad_row.load() != INT64_MAX) {
    throw Error(ErrorCode::kNonFinite,
                "Tensor " + source.name + ": row " + std::to_string(bad_row.load()) +
                    (info(source.type).block > 1 ? " has a scale" : " has a weight") +
                    " that is NaN or infinite. The file is damaged or was converted wrongly.");
  }
  return part;
}

}  // namespace

size_t Matrix::Part::block_stride() const {
  if (!is_sign_type(type)) return kBlockRows * row_stride;
  const SignLayout layout = sign_layout(type);
  return static_cast<size_t>(columns / layout.columns * layout.block_bytes());
}

Matrix::Matrix() = default;
Matrix::~Matrix() = default;

std::shared_ptr<const Matrix> Matrix::pack(std::span<const MatrixSource> sources, int64_t columns,
                                           ThreadPool& pool) {
  // Packed weights keep the file's byte order inside.
  static_assert(std::endian::native == std::endian::little);
  if (sources.empty() || columns < 1)
    throw Error(ErrorCode::kInvalidArgument, "A matrix has at least one row and column.");
  for (const MatrixSource& source : sources) {
    const DataTypeInfo& type = info(source.type);
    if (source.rows < 1) throw Error(ErrorCode::kInvalidArgument, "Tensor " + source.name + " has no rows.");
    if (columns % type.block != 0) {
      throw Error(ErrorCode::kInvalidArgument, "Tensor " + source.name + ": rows of " +
                                                   std::to_string(columns) +
                                                   " weights are not a multiple of " + type.name +
                                                   "'s block of " + std::to_string(type.block) + ".");
    }
  }
  std::shared_ptr<Matrix> matrix(new Matrix());
  matrix->columns_ = columns;
  for (const MatrixSource& source : sources) {
    matrix->parts_.push_back(pack_part(source, columns, pool));
    matrix->rows_ += source.rows;
  }
  return matrix;
}

size_t Matrix::bytes() const {
  size_t bytes = 0;
  for (const Part& part : parts_) bytes += part.memory.bytes();
  return bytes;
}

Vector::Vector(const std::string& name, std::span<const float> values)
    : values_(values.begin(), values.end()) {
  for (size_t i = 0; i < values_.size(); ++i) {
    if (!std::isfinite(values_[i])) {
      throw Error(ErrorCode::kNonFinite,
                  "Tensor " + name + ": weight " + std::to_string(i) +
                      " is NaN or infinite. The file is damaged or was converted wrongly.");
    }
  }
}

}  // namespace niwaki
