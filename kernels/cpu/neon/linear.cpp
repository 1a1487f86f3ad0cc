// The matrix kernels with NEON: sixteen-entry tables in registers (tbl), 32 rows at a time.
#define NIWAKI_SIMD_NEON
#include "cpu/linear_float.h"
#include "cpu/neon/linear_lanes.h"
#include "cpu/quantize.h"

namespace niwaki {
namespace {

// A table's sums are made non-negative by an offset and split in two planes of bytes, as tbl looks up bytes.
// 64 bytes for each byte column:
//
//   low nibble:  low plane 16 | high plane 16       high nibble:  low plane 16 | high plane 16
//
// One bit a weight: four columns, sums of the activations whose bit is set, at most 4 * 511 = 2044, eleven
// bits: five in the low plane (eight look-ups fit a byte), six in the high (four do). Two bits: two columns
// of -1, 0, 1, 2 times the activation, 0 .. 3066 after the offset, twelve bits: six and six.
template <int kBits>
constexpr int kLowBits = kBits == 1 ? 5 : 6;
/// Byte columns, of two look-ups each, whose low planes are added in bytes. High planes: two.
template <int kBits>
constexpr int kLowRun = kBits == 1 ? 4 : 2;
/// Byte columns whose sums fit 16 bits: 128 columns of at most 32,767, or 32 columns of at most 3 * 511 each.
template <int kBits>
constexpr int kSumRun = kBits == 1 ? 16 : 8;

/// Lanes cost about as much for one row as for sixteen: as much as tables for some nine, counted in cycles of
/// processors with two 128-bit units that decode four instructions, or four units and eight instructions.
constexpr int kTableRows = 9;

inline int positive(int x) {
  return x > 0 ? x : 0;
}

/// Splits sixteen sums, entries 0..7 and 8..15, in planes.
template <int kLow>
inline void store_planes(const uint16x8_t (&sums)[2], uint8_t* table) {
  const uint16x8_t mask = vdupq_n_u16((1 << kLow) - 1);
  for (int i = 0; i < 2; ++i) {
    vst1_u8(table + 8 * i, vmovn_u16(vandq_u16(sums[i], mask)));
    vst1_u8(table + 16 + 8 * i, vshrn_n_u16(sums[i], kLow));
  }
}

void build_tables(int /*tile_rows*/, int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  const uint16_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const uint16x8_t code[2] = {vld1q_u16(numbers), vld1q_u16(numbers + 8)};
  offsets[0] = offsets[1] = 0;
  for (int c = 0; c < kGroupColumns; c += 4 / bits) {
    const int16_t* q = quanta + c;
    uint16x8_t sums[2];
    if (bits == 1) {
      const int negative = positive(-q[0]) + positive(-q[1]) + positive(-q[2]) + positive(-q[3]);
      for (int half = 0; half < 2; ++half) {
        sums[half] = vdupq_n_u16(static_cast<uint16_t>(negative));
        for (int i = 0; i < 4; ++i) {
          const uint16x8_t set = vtstq_u16(code[half], vdupq_n_u16(static_cast<uint16_t>(1 << i)));
          sums[half] = vaddq_u16(sums[half], vandq_u16(set, vdupq_n_u16(static_cast<uint16_t>(q[i]))));
        }
      }
      store_planes<kLowBits<1>>(sums, tables);
      // sum of +-q = 2 (table sum) - sum of |q|
      offsets[c / 64] += 2 * negative + q[0] + q[1] + q[2] + q[3];
    } else {
      const int offset = positive(q[0]) + positive(q[1]) + 2 * (positive(-q[0]) + positive(-q[1]));
      // Each code is one more than its weight.
      const int lowest = offset - q[0] - q[1];
      for (int half = 0; half < 2; ++half) {
        sums[half] = vdupq_n_u16(static_cast<uint16_t>(lowest));
        sums[half] =
            vmlaq_n_u16(sums[half], vandq_u16(code[half], vdupq_n_u16(3)), static_cast<uint16_t>(q[0]));
        sums[half] = vmlaq_n_u16(sums[half], vshrq_n_u16(code[half], 2), static_cast<uint16_t>(q[1]));
      }
      store_planes<kLowBits<2>>(sums, tables);
      offsets[c / 64] += offset;
    }
    tables += 32;
  }
}

/// Adds the look-ups of one byte column for 32 rows: their bytes in two registers.
inline void look_up(const uint8_t* bytes, const uint8_t* table, uint8x16_t (&low)[2], uint8x16_t (&high)[2]) {
  const uint8x16_t first_low = vld1q_u8(table), first_high = vld1q_u8(table + 16);
  const uint8x16_t second_low = vld1q_u8(table + 32), second_high = vld1q_u8(table + 48);
  for (int i = 0; i < 2; ++i) {
    const uint8x16_t both = vld1q_u8(bytes + 16 * i);
    const uint8x16_t first = vandq_u8(both, vdupq_n_u8(15)), second = vshrq_n_u8(both, 4);
    low[i] = vaddq_u8(low[i], vqtbl1q_u8(first_low, first));
    high[i] = vaddq_u8(high[i], vqtbl1q_u8(first_high, first));
    low[i] = vaddq_u8(low[i], vqtbl1q_u8(second_low, second));
    high[i] = vaddq_u8(high[i], vqtbl1q_u8(second_high, second));
  }
}

/// Table sums of 32 rows in their order: sums[i] are those of rows 8 i .. 8 i + 7.
struct Sums {
  uint16x8_t v[4];
};

/// The table sums of 32 rows over kSumRun byte columns. Full bytes are widened as they lie; only at the end
/// the even lanes, rows 0..15, are taken from the odd ones, rows 16..31.
template <int kBits>
inline Sums sum_half(const uint8_t* bytes, const uint8_t* tables) {
  const uint16x8_t zero = vdupq_n_u16(0);
  uint16x8_t low[4] = {zero, zero, zero, zero}, high[4] = {zero, zero, zero, zero};
  const auto widen = [](const uint8x16_t(&full)[2], uint16x8_t(&wide)[4]) {
    for (int i = 0; i < 2; ++i) {
      wide[2 * i] = vaddw_u8(wide[2 * i], vget_low_u8(full[i]));
      wide[2 * i + 1] = vaddw_high_u8(wide[2 * i + 1], full[i]);
    }
  };
#pragma GCC unroll 1
  for (int p = 0; p < kSumRun<kBits>; p += kLowRun<kBits>) {
    uint8x16_t low_bytes[2] = {vdupq_n_u8(0), vdupq_n_u8(0)};
    for (int s = 0; s < kLowRun<kBits>; s += 2) {
      uint8x16_t high_bytes[2] = {vdupq_n_u8(0), vdupq_n_u8(0)};
      look_up(bytes + (p + s) * kBlockRows, tables + (p + s) * 64, low_bytes, high_bytes);
      look_up(bytes + (p + s + 1) * kBlockRows, tables + (p + s + 1) * 64, low_bytes, high_bytes);
      widen(high_bytes, high);
    }
    widen(low_bytes, low);
  }
  for (int i = 0; i < 4; ++i) low[i] = vaddq_u16(low[i], vshlq_n_u16(high[i], kLowBits<kBits>));
  return {{vuzp1q_u16(low[0], low[1]), vuzp1q_u16(low[2], low[3]), vuzp2q_u16(low[0], low[1]),
           vuzp2q_u16(low[2], low[3])}};
}

/// out = fma(float(sum), scale of the row * scale of the activations, out), for four rows.
inline void add_scaled(int32x4_t sums, const uint8_t* scales, float activation_scale, float* out) {
  const float16x4_t halves = vreinterpret_f16_u8(vld1_u8(scales));
  const float32x4_t scale = vmulq_n_f32(vcvt_f32_f16(halves), activation_scale);
  vst1q_f32(out, vfmaq_f32(vld1q_f32(out), vcvtq_f32_s32(sums), scale));
}

/// One block of one bit a weight: 64 rows, 128 columns.
inline void multiply_block_1(const uint8_t* block, const uint8_t* tables, int32_t offset, float scale,
                             float* out) {
  const uint16x8_t offsets = vdupq_n_u16(static_cast<uint16_t>(offset));
  const uint8_t* scales = block + 16 * kBlockRows;
  for (int half = 0; half < 2; ++half) {
    const Sums sums = sum_half<1>(block + 32 * half, tables);
    for (int i = 0; i < 4; ++i) {
      // Twice a sum wraps, and what is left after the offset is again within int16.
      const int16x8_t sum = vreinterpretq_s16_u16(vsubq_u16(vshlq_n_u16(sums.v[i], 1), offsets));
      const int row = 32 * half + 8 * i;
      add_scaled(vmovl_s16(vget_low_s16(sum)), scales + 2 * row, scale, out + row);
      add_scaled(vmovl_high_s16(sum), scales + 2 * row + 8, scale, out + row + 4);
    }
  }
}

/// One block of two bits a weight: 64 rows, 4 * kByteColumns columns.
template <int kByteColumns>
inline void multiply_block_2(const uint8_t* block, const uint8_t* tables, int32_t offset, float scale,
                             float* out) {
  const uint8_t* scales = block + kByteColumns * kBlockRows;
  for (int half = 0; half < 2; ++half) {
    uint32x4_t sums[8];
    for (int i = 0; i < 8; ++i) sums[i] = vdupq_n_u32(-static_cast<uint32_t>(offset));
    for (int p = 0; p < kByteColumns; p += kSumRun<2>) {
      const Sums run = sum_half<2>(block + p * kBlockRows + 32 * half, tables + p * 64);
      for (int i = 0; i < 4; ++i) {
        sums[2 * i] = vaddw_u16(sums[2 * i], vget_low_u16(run.v[i]));
        sums[2 * i + 1] = vaddw_high_u16(sums[2 * i + 1], run.v[i]);
      }
    }
    for (int i = 0; i < 8; ++i) {
      const int row = 32 * half + 4 * i;
      add_scaled(vreinterpretq_s32_u32(sums[i]), scales + 2 * row, scale, out + row);
    }
  }
}

/// Bytes of weights that are asked for ahead of their use. The processor's own prefetching stops at every
/// page; past the end of a matrix nothing is harmed.
constexpr int kAhead = 9216;

void multiply_sign(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* workspace) {
  if (tile.rows > kTableRows)
    return multiply_neon_lanes(type, weights, blocks, tile, out, out_stride, workspace);
  const SignLayout layout = sign_layout(type);
  const int64_t scale_groups = tile.columns / layout.columns;
  const int64_t block_stride = scale_groups * layout.block_bytes();
  for (int t = 0; t < tile.rows; ++t) {
    for (int64_t i = 0; i < blocks * kBlockRows; ++i) out[t * out_stride + i] = 0.0f;
  }
  // Weights are read as they lie, once; the tables come from the second-level cache again and again.
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t g = 0; g < scale_groups; ++g) {
      const uint8_t* block = weights + b * block_stride + g * layout.block_bytes();
      for (int i = 0; i < layout.block_bytes(); i += 64) __builtin_prefetch(block + kAhead + i);
      for (int t = 0; t < tile.rows; ++t) {
        float* sums = out + t * out_stride + b * kBlockRows;
        if (type == DataType::kQ1_0) {
          const int64_t at = g * tile.rows + t;
          multiply_block_1(block, tile.tables[1] + static_cast<size_t>(at) * nibble_table_bytes(1),
                           tile.offsets[1][2 * at] + tile.offsets[1][2 * at + 1], tile.scales[at], sums);
        } else if (type == DataType::kQ2_0) {
          const int64_t at = g / 2 * tile.rows + t;
          multiply_block_2<16>(
              block, tile.tables[2] + static_cast<size_t>(at) * nibble_table_bytes(2) + g % 2 * 16 * 64,
              tile.offsets[2][2 * at + g % 2], tile.scales[at], sums);
        } else {
          const int64_t at = g * tile.rows + t;
          multiply_block_2<32>(block, tile.tables[2] + static_cast<size_t>(at) * nibble_table_bytes(2),
                               tile.offsets[2][2 * at] + tile.offsets[2][2 * at + 1], tile.scales[at], sums);
        }
      }
    }
  }
}

}  // namespace

const LinearKernels kNeonLinearKernels = {
    SignOrder::kColumns, quantize_group,   kLaneRows,     kTableRows,          1,          nibble_table_bytes,
    build_tables,        build_neon_lanes, multiply_sign, multiply_float_rows, swiglu_rows};

}  // namespace niwaki
