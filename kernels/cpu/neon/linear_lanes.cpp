// Sign matrices times many rows of a step: the method of the four Russians (Arlazarov et al., 1970). Lanes
// are the 16 rows of the tile, in int16, two registers. For every six weight bits the 64 possible sums of
// activations are built once; a weight row then adds the one that its bits choose: two loads and adds for
// 6 x 16 products of Q1_0, or 3 x 16 of Q2_0.
//
// A pass takes 64 bits of every weight row: eleven fields of six bits (the last of four), whose tables, 22
// KB, stay in the first-level cache while the rows of a run go by.
#include "cpu/neon/linear_lanes.h"

#include <arm_neon.h>

namespace niwaki {
namespace {

constexpr int kFields = 11;
constexpr int kFieldBits = 6;
constexpr int kEntries = 1 << kFieldBits;

/// One number of each of the 16 rows of the step.
struct Lanes {
  int16x8_t v[2];

  static inline Lanes zero() { return {{vdupq_n_s16(0), vdupq_n_s16(0)}}; }
  static inline Lanes load(const int16_t* p) { return {{vld1q_s16(p), vld1q_s16(p + 8)}}; }
  inline void store(int16_t* p) const {
    vst1q_s16(p, v[0]);
    vst1q_s16(p + 8, v[1]);
  }
  friend inline Lanes operator+(Lanes x, Lanes y) {
    return {{vaddq_s16(x.v[0], y.v[0]), vaddq_s16(x.v[1], y.v[1])}};
  }
  friend inline Lanes operator-(Lanes x, Lanes y) {
    return {{vsubq_s16(x.v[0], y.v[0]), vsubq_s16(x.v[1], y.v[1])}};
  }
};

/// Lanes 4 i .. 4 i + 3.
inline int32x4_t widen(const Lanes& x, int i) {
  const int16x8_t eight = x.v[i / 2];
  return vmovl_s16(i % 2 == 0 ? vget_low_s16(eight) : vget_high_s16(eight));
}

/// The tables of one pass. Bits of a weight: 1, -1 or +1 times the activation; or 2, code - 1 times it.
template <int kBits>
inline void build_pass(const int16_t* lanes, int16_t* tables) {
  for (int field = 0; field < kFields; ++field) {
    const int bits = field + 1 < kFields ? kFieldBits : 64 - kFieldBits * (kFields - 1);
    int16_t* table = tables + field * kEntries * kLaneRows;
    Lanes all_clear = Lanes::zero();
    for (int i = 0; i < bits / kBits; ++i) all_clear = all_clear - Lanes::load(lanes + i * kLaneRows);
    all_clear.store(table);
    for (int bit = 0; bit < bits; ++bit) {
      // What setting the bit adds.
      Lanes change = Lanes::load(lanes + bit / kBits * kLaneRows);
      if (kBits == 1 || bit % 2 == 1) change = change + change;
      for (int e = 0; e < 1 << bit; ++e)
        (Lanes::load(table + e * kLaneRows) + change).store(table + ((1 << bit) + e) * kLaneRows);
    }
    lanes += bits / kBits * kLaneRows;
  }
}

/// Eight byte columns of 16 rows (a quarter of a block) as one word a row, in the order of the bytes.
inline void gather_words(const uint8_t* bytes, uint64_t* words) {
  uint16x8_t pairs[2][4];  // of the first and the last eight rows
  for (int p = 0; p < 4; ++p) {
    const uint8x16_t a = vld1q_u8(bytes + 2 * p * kBlockRows), b = vld1q_u8(bytes + (2 * p + 1) * kBlockRows);
    pairs[0][p] = vreinterpretq_u16_u8(vzip1q_u8(a, b));
    pairs[1][p] = vreinterpretq_u16_u8(vzip2q_u8(a, b));
  }
  for (int i = 0; i < 2; ++i, words += 8) {
    const uint16x8_t(&p)[4] = pairs[i];
    const uint32x4_t a = vreinterpretq_u32_u16(vzip1q_u16(p[0], p[1])),
                     b = vreinterpretq_u32_u16(vzip2q_u16(p[0], p[1])),
                     c = vreinterpretq_u32_u16(vzip1q_u16(p[2], p[3])),
                     d = vreinterpretq_u32_u16(vzip2q_u16(p[2], p[3]));
    vst1q_u64(words, vreinterpretq_u64_u32(vzip1q_u32(a, c)));
    vst1q_u64(words + 2, vreinterpretq_u64_u32(vzip2q_u32(a, c)));
    vst1q_u64(words + 4, vreinterpretq_u64_u32(vzip1q_u32(b, d)));
    vst1q_u64(words + 6, vreinterpretq_u64_u32(vzip2q_u32(b, d)));
  }
}

/// Adds the sums of one pass for one weight row.
inline Lanes add_fields(const int16_t* tables, uint64_t word, Lanes sum) {
#pragma GCC unroll 11
  for (int field = 0; field < kFields; ++field) {
    const int16_t* entry = tables + (word >> (field * kFieldBits) & (kEntries - 1)) * kLaneRows;
    // Left alone, the compiler adds the field's offset to the index by instructions of their own, not in the
    // address of the load.
    asm("" : "+r"(entry));
    sum = sum + Lanes::load(entry + field * kEntries * kLaneRows);
  }
  return sum;
}

/// totals[row] = fma(float(sum), row scale * activation scale, totals[row]) for four lanes of a row.
inline void add_scaled(int32x4_t sum, float row_scale, const float* activation_scales, float* totals) {
  const float32x4_t scale = vmulq_n_f32(vld1q_f32(activation_scales), row_scale);
  vst1q_f32(totals, vfmaq_f32(vld1q_f32(totals), vcvtq_f32_s32(sum), scale));
}

/// What one pass does for one weight row: the first or last of those that a scale group takes, or one
/// between. Sums of two bits a weight may not fit int16 beyond one pass (32 columns of at most 2 * 511) and
/// wait as int32; those of one bit do over the whole group. `half` is the row's scale.
template <int kBits, bool kFirst, bool kLast>
inline void add_row(const int16_t* tables, uint64_t word, const uint8_t* half, const float* activation_scales,
                    int32_t* partial, float* totals) {
  float row_scale = 0;
  if (kLast) {
    __fp16 scale;
    __builtin_memcpy(&scale, half, sizeof scale);
    row_scale = scale;
  }
  if constexpr (kBits == 1) {
    int16_t* waiting = reinterpret_cast<int16_t*>(partial);
    const Lanes sum = add_fields(tables, word, kFirst ? Lanes::zero() : Lanes::load(waiting));
    if (!kLast) return sum.store(waiting);
    for (int i = 0; i < 4; ++i)
      add_scaled(widen(sum, i), row_scale, activation_scales + 4 * i, totals + 4 * i);
  } else {
    const Lanes sum = add_fields(tables, word, Lanes::zero());
    for (int i = 0; i < 4; ++i) {
      int32x4_t four = widen(sum, i);
      if (!kFirst) four = vaddq_s32(four, vld1q_s32(partial + 4 * i));
      if (!kLast) {
        vst1q_s32(partial + 4 * i, four);
      } else {
        add_scaled(four, row_scale, activation_scales + 4 * i, totals + 4 * i);
      }
    }
  }
}

/// One pass over a run of blocks.
template <int kBits, bool kFirst, bool kLast>
inline void run_pass(const int16_t* tables, const uint8_t* bytes, const uint8_t* scales, int64_t block_stride,
                     int64_t blocks, const float* activation_scales, int32_t* partial, float* totals) {
  // Of a row: 16 lanes of int16 or int32.
  constexpr int kPartial = kLaneRows * kBits / 2;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      uint64_t words[16];
      gather_words(bytes + b * block_stride + 16 * quarter, words);
      for (int i = 0; i < 16; ++i) {
        // Even bytes are eight neighboring rows, odd ones the eight that are 16 rows on.
        const int in_block = quarter / 2 * 32 + i / 8 * 16 + quarter % 2 * 8 + i % 8;
        const int64_t row = b * kBlockRows + in_block;
        add_row<kBits, kFirst, kLast>(tables, words[i % 8 * 2 + i / 8],
                                      scales + b * block_stride + 2 * in_block, activation_scales,
                                      partial + row * kPartial, totals + row * kLaneRows);
      }
    }
  }
}

template <int kBits, int kPasses>
void multiply_type(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* workspace) {
  const SignLayout layout = sign_layout(type);
  const int64_t scale_groups = tile.columns / layout.columns;
  const int64_t block_stride = scale_groups * layout.block_bytes();
  const int64_t rows = blocks * kBlockRows;
  float* totals = workspace;
  auto* partial = reinterpret_cast<int32_t*>(workspace + kRunRows * kLaneRows);
  for (int64_t i = 0; i < rows * kLaneRows; ++i) totals[i] = 0.0f;
  alignas(64) int16_t tables[kFields * kEntries * kLaneRows];
  float activation_scales[kLaneRows] = {};
  for (int64_t g = 0; g < scale_groups; ++g) {
    const int64_t column = g * layout.columns;
    for (int t = 0; t < tile.rows; ++t)
      activation_scales[t] = tile.scales[column / kGroupColumns * tile.rows + t];
    const uint8_t* block = weights + g * layout.block_bytes();
    const uint8_t* scales = block + layout.byte_columns * kBlockRows;
    for (int pass = 0; pass < kPasses; ++pass) {
      build_pass<kBits>(tile.lanes + (column + pass * 64 / kBits) * kLaneRows, tables);
      const auto run = [&](auto one_pass) {
        one_pass(tables, block + pass * 8 * kBlockRows, scales, block_stride, blocks, activation_scales,
                 partial, totals);
      };
      if (pass == 0) {
        run(run_pass<kBits, true, false>);
      } else if (pass + 1 < kPasses) {
        run(run_pass<kBits, false, false>);
      } else {
        run(run_pass<kBits, false, true>);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int t = 0; t < tile.rows; ++t) out[t * out_stride + r] = totals[r * kLaneRows + t];
  }
}

}  // namespace

void build_neon_lanes(const int16_t* quanta, int16_t* lanes) {
  for (int c = 0; c < kGroupColumns; ++c) {
    for (int t = 0; t < kLaneRows; ++t) lanes[c * kLaneRows + t] = quanta[t * kGroupColumns + c];
  }
}

void multiply_neon_lanes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                         float* out, int64_t out_stride, float* workspace) {
  switch (type) {
    case DataType::kQ1_0:
      return multiply_type<1, 2>(type, weights, blocks, tile, out, out_stride, workspace);
    case DataType::kQ2_0:
      return multiply_type<2, 2>(type, weights, blocks, tile, out, out_stride, workspace);
    default:
      return multiply_type<2, 4>(type, weights, blocks, tile, out, out_stride, workspace);
  }
}

}  // namespace niwaki
