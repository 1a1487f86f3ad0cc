#include "niwaki/matrix.h"

#include <cmath>
#include <cstring>

#include "niwaki/error.h"
#include "src/matrix_check.h"

namespace niwaki {
namespace {

constexpr uint16_t kHalfExponent = 0x7c00;  // all ones: NaN or infinite

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

}  // namespace

bool row_is_finite(DataType type, const uint8_t* row, int64_t columns) {
  const DataTypeInfo& t = info(type);
  switch (type) {
    case DataType::kF32:
      return all_finite<uint32_t>(row, columns, 4, 0x7f800000u);
    case DataType::kF16:
      return all_finite<uint16_t>(row, columns, 2, kHalfExponent);
    case DataType::kBF16:
      return all_finite<uint16_t>(row, columns, 2, 0x7f80u);
    default:
      return all_finite<uint16_t>(row, columns / t.block, t.block_bytes, kHalfExponent);
  }
}

void refuse_row(const MatrixSource& source, int64_t row) {
  throw Error(ErrorCode::kNonFinite,
              "Tensor " + source.name + ": row " + std::to_string(row) +
                  (info(source.type).block > 1 ? " has a scale" : " has a weight") +
                  " that is NaN or infinite. The file is damaged or was converted wrongly.");
}

Matrix::Matrix(std::span<const MatrixSource> sources, int64_t columns) : columns_(columns) {
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
  for (const MatrixSource& source : sources) {
    tensors_.push_back({source.name, source.type, source.rows});
    rows_ += source.rows;
  }
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
