// The matrix kernels in plain C++: what the others are tested against.
#include "cpu/linear_float.h"
#include "cpu/quantize.h"

namespace niwaki {
namespace {

/// Rows of the step that are multiplied together.
constexpr int kTileRows = 16;

/// Weight `index` of four bits: its value in units of the scale.
int weight_of(int bits, int code, int index) {
  return bits == 1 ? 2 * (code >> index & 1) - 1 : (code >> 2 * index & 3) - 1;
}

/// Sixteen int16 sums for every four weight bits; nothing to take off.
void build_tables(int /*tile_rows*/, int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  const int weights = 4 / bits;
  for (int c = 0; c < kGroupColumns; c += weights) {
    int16_t sums[16];
    for (int code = 0; code < 16; ++code) {
      int sum = 0;
      for (int i = 0; i < weights; ++i) sum += weight_of(bits, code, i) * quanta[c + i];
      sums[code] = static_cast<int16_t>(sum);
    }
    std::memcpy(tables, sums, sizeof sums);
    tables += sizeof sums;
  }
  offsets[0] = offsets[1] = 0;
}

void multiply_sign(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* /*workspace*/) {
  const SignLayout layout = sign_layout(type);
  const int64_t scale_groups = tile.columns / layout.columns;
  for (int t = 0; t < tile.rows; ++t) {
    for (int64_t i = 0; i < blocks * kBlockRows; ++i) out[t * out_stride + i] = 0.0f;
  }
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t g = 0; g < scale_groups; ++g) {
      const uint8_t* block = weights + (b * scale_groups + g) * layout.block_bytes();
      const int64_t group = g * layout.columns / kGroupColumns;
      const int64_t first = g * layout.columns % kGroupColumns;  // column inside the group of activations
      for (int t = 0; t < tile.rows; ++t) {
        const int64_t at = group * tile.rows + t;
        const uint8_t* tables = tile.tables[layout.bits] +
                                static_cast<size_t>(at) * nibble_table_bytes(layout.bits) +
                                first * layout.bits / 4 * 32;
        int32_t sums[kBlockRows] = {};
        for (int p = 0; p < layout.byte_columns; ++p) {
          int16_t table[32];
          std::memcpy(table, tables + p * 64, sizeof table);
          for (int i = 0; i < kBlockRows; ++i) {
            const uint8_t byte = block[p * kBlockRows + i];
            sums[i] += table[byte & 15] + table[16 + (byte >> 4)];
          }
        }
        for (int r = 0; r < kBlockRows; ++r) {
          const float scale = load_half(block + layout.byte_columns * kBlockRows + 2 * r) * tile.scales[at];
          float& sum = out[t * out_stride + b * kBlockRows + r];
          sum = __builtin_fmaf(static_cast<float>(sums[sign_position(r)]), scale, sum);
        }
      }
    }
  }
}

}  // namespace

const LinearKernels kPortableLinearKernels = {
    SignOrder::kColumns, quantize_group, kTileRows,     kTileRows,           1,          nibble_table_bytes,
    build_tables,        nullptr,        multiply_sign, multiply_float_rows, swiglu_rows};

}  // namespace niwaki
