// TrainingKernels::dequantize and dequantize_transposed; see training_kernels_impl.h.
#pragma once
#include "cpu/linear_float.h"
#include "cpu/linear_kernels.h"
#include "cpu/simd.h"
#include "cpu/training/training_kernels.h"

namespace niwaki {
namespace {

/// The weights that a byte stands for, before their scale.
struct SignTable {
  float one_bit[256][8];
  float two_bits[256][4];
};
constexpr SignTable make_sign_table() {
  SignTable table{};
  for (int byte = 0; byte < 256; ++byte) {
    for (int i = 0; i < 8; ++i) table.one_bit[byte][i] = (byte >> i & 1) != 0 ? 1.0f : -1.0f;
    for (int i = 0; i < 4; ++i) table.two_bits[byte][i] = static_cast<float>((byte >> 2 * i & 3) - 1);
  }
  return table;
}
constexpr SignTable kSignTable = make_sign_table();

inline float sign_scale(const SignLayout& layout, const uint8_t* group, int row) {
  return load_half(group + layout.byte_columns * kBlockRows + 2 * row);
}

inline void dequantize_sign(const WeightBlock& block, int64_t first_column, int64_t columns, float* out) {
  const SignLayout layout = sign_layout(block.type);
  const uint8_t* group = block.data + first_column / layout.columns * layout.block_bytes();
  const int first_byte = static_cast<int>(first_column % layout.columns) * layout.bits / 8;
  const int bytes = static_cast<int>(columns) * layout.bits / 8;
  for (int row = 0; row < block.rows; ++row) {
    const float scale = sign_scale(layout, group, row);
    float* to = out + row * kPanelColumns;
    for (int b = 0; b < bytes; ++b) {
      const uint8_t byte = group[sign_byte(block.order, row, first_byte + b)];
      if (layout.bits == 1) {
        for (int i = 0; i < 8; ++i) to[8 * b + i] = kSignTable.one_bit[byte][i] * scale;
      } else {
        for (int i = 0; i < 4; ++i) to[4 * b + i] = kSignTable.two_bits[byte][i] * scale;
      }
    }
  }
}

inline void dequantize_sign_transposed(const WeightBlock& block, int64_t first_column, int64_t columns,
                                       float* out) {
  const SignLayout layout = sign_layout(block.type);
  const int per_byte = 8 / layout.bits;
  for (int64_t c = 0; c < columns; c += per_byte, out += per_byte * kPanelColumns) {
    const int64_t column = first_column + c;
    const uint8_t* group = block.data + column / layout.columns * layout.block_bytes();
    const int byte = static_cast<int>(column % layout.columns) / per_byte;
    alignas(64) float scales[kBlockRows];
    alignas(64) int32_t codes[kBlockRows];
    for (int row = 0; row < kBlockRows; ++row) {
      scales[row] = sign_scale(layout, group, row);
      codes[row] = group[sign_byte(block.order, row, byte)];
    }
    for (int i = 0; i < per_byte; ++i) {
      float* to = out + i * kPanelColumns;
      if (layout.bits == 1) {
        for (int row = 0; row < kBlockRows; ++row)
          to[row] = scales[row] * static_cast<float>(2 * (codes[row] >> i & 1) - 1);
      } else {
        for (int row = 0; row < kBlockRows; ++row)
          to[row] = scales[row] * static_cast<float>((codes[row] >> 2 * i & 3) - 1);
      }
    }
  }
}

template <DataType kType>
inline void dequantize_plain(const WeightBlock& block, int64_t first_column, int64_t columns, float* out) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const uint8_t* weights = block.data + static_cast<size_t>(row) * block.row_stride;
    for (int64_t c = 0; c < columns; c += kLanes)
      load_weights<kType>(weights, first_column + c).store(out + row * kPanelColumns + c);
  }
}

void dequantize(const WeightBlock& block, int64_t first_column, int64_t columns, float* out) {
  switch (block.type) {
    case DataType::kF32:
      return dequantize_plain<DataType::kF32>(block, first_column, columns, out);
    case DataType::kF16:
      return dequantize_plain<DataType::kF16>(block, first_column, columns, out);
    case DataType::kBF16:
      return dequantize_plain<DataType::kBF16>(block, first_column, columns, out);
    case DataType::kQ8_0:
      return dequantize_plain<DataType::kQ8_0>(block, first_column, columns, out);
    case DataType::kQ4_0:
      return dequantize_plain<DataType::kQ4_0>(block, first_column, columns, out);
    default:
      return dequantize_sign(block, first_column, columns, out);
  }
}

void dequantize_transposed(const WeightBlock& block, int64_t first_column, int64_t columns, float* out) {
  if (is_sign_type(block.type)) return dequantize_sign_transposed(block, first_column, columns, out);
  alignas(64) float rows[kBlockRows * kPanelColumns] = {};
  for (int64_t first = 0; first < columns; first += kPanelColumns) {
    const int64_t count = columns - first < kPanelColumns ? columns - first : kPanelColumns;
    dequantize(block, first_column + first, count, rows);
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t row = 0; row < kBlockRows; ++row)
        out[(first + c) * kPanelColumns + row] = rows[row * kPanelColumns + c];
    }
  }
}

}  // namespace
}  // namespace niwaki
