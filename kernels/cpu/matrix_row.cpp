#include <cstring>

#include "cpu/float16.h"
#include "cpu/linear.h"
#include "cpu/matrix.h"

namespace niwaki {
namespace {

float load_half(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof half);
  return half_to_float(half);
}

void copy_sign_row(const CpuMatrix::Part& part, int64_t row, float* out) {
  const SignLayout layout = sign_layout(part.type);
  const int in_block = static_cast<int>(row % kBlockRows);
  const int per_byte = 8 / layout.bits;
  for (int64_t g = 0; g < part.columns / layout.columns; ++g) {
    const uint8_t* block = part.block(row / kBlockRows) + g * layout.block_bytes();
    const float scale = load_half(block + layout.byte_columns * kBlockRows + 2 * in_block);
    for (int p = 0; p < layout.byte_columns; ++p) {
      const int byte = block[sign_byte(part.order, in_block, p)];
      for (int i = 0; i < per_byte; ++i) {
        const int weight = layout.bits == 1 ? 2 * (byte >> i & 1) - 1 : (byte >> 2 * i & 3) - 1;
        *out++ = scale * static_cast<float>(weight);
      }
    }
  }
}

void copy_float_row(const CpuMatrix::Part& part, int64_t row, float* out) {
  const uint8_t* p = part.block(row / kBlockRows) + static_cast<size_t>(row % kBlockRows) * part.row_stride;
  for (int64_t c = 0; c < part.columns; ++c) {
    uint16_t bits;
    switch (part.type) {
      case DataType::kF32:
        std::memcpy(out + c, p + 4 * c, 4);
        break;
      case DataType::kF16:
        out[c] = load_half(p + 2 * c);
        break;
      case DataType::kBF16:
        std::memcpy(&bits, p + 2 * c, 2);
        out[c] = bfloat16_to_float(bits);
        break;
      case DataType::kQ8_0: {
        const uint8_t* block = p + c / 32 * 34;
        out[c] = load_half(block) * static_cast<float>(static_cast<int8_t>(block[2 + c % 32]));
        break;
      }
      default: {  // kQ4_0
        const uint8_t* block = p + c / 32 * 18;
        const int byte = block[2 + c % 16];
        out[c] = load_half(block) * static_cast<float>((c % 32 < 16 ? byte & 15 : byte >> 4) - 8);
        break;
      }
    }
  }
}

}  // namespace

void copy_row(const CpuMatrix::Part& part, int64_t row, float* out) {
  is_sign_type(part.type) ? copy_sign_row(part, row, out) : copy_float_row(part, row, out);
}

void copy_row(const CpuMatrix& matrix, int64_t row, float* out) {
  for (const CpuMatrix::Part& part : matrix.parts()) {
    if (row < part.rows) {
      copy_row(part, row, out);
      return;
    }
    row -= part.rows;
  }
}

}  // namespace niwaki
