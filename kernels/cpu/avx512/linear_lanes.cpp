// Sign matrices times many rows of a step: the method of the four Russians (Arlazarov et al., 1970). Lanes
// are 32 rows of the tile, in int16. For every five weight bits the 32 possible sums of activations are built
// once; a weight row then adds the one that its bits choose: one load and add for 5 x 32 products of Q1_0, or
// 2.5 x 32 of Q2_0. Loads are what limits it, one register a cycle on Zen 4.
//
// A pass takes 64 bits of every weight row: thirteen fields of five bits (the last of four), whose tables, 25
// KB, stay in the first-level cache while the rows of a run go by. Sums of a pass always fit int16. What
// passes by them, partial sums and totals of the run, comes from the second-level cache.
//
// Lanes 2 i and 2 i + 1 are rows i and 16 + i of the tile: widened, the low halves of 32-bit lanes are 16
// neighboring rows, and so are the high ones.
#include "cpu/avx512/linear_lanes.h"

#include <immintrin.h>

namespace niwaki {
namespace {

constexpr int kPassBytes = 8 * kBlockRows;
constexpr int kFields = 13;
constexpr int kFieldBits = 5;
constexpr int field_bits(int field) {
  return field + 1 < kFields ? kFieldBits : 64 - kFieldBits * (kFields - 1);
}
/// Bytes of a table entry: 32 lanes.
constexpr int kEntryShift = 6;
constexpr int kTableBytes = 1 << (kFieldBits + kEntryShift);
/// Floats of a block's totals.
constexpr int kBlockTotals = kBlockRows * kLaneRows;

inline __m512i load(const void* p) {
  return _mm512_load_si512(p);
}
inline void store(void* p, __m512i v) {
  _mm512_store_si512(p, v);
}

/// The tables of one pass. Bits of a weight: 1, -1 or +1 times the activation; or 2, code - 1 times it.
template <int kBits>
inline void build_pass(const int16_t* lanes, uint8_t* tables) {
  for (int field = 0; field < kFields; ++field) {
    const int bits = field_bits(field);
    // What setting a bit adds, and the sum while all are clear.
    __m512i change[kFieldBits], clear = _mm512_setzero_si512();
    for (int i = 0; i < bits; ++i) {
      const int bit = field * kFieldBits + i;
      change[i] = load(lanes + bit / kBits * kLaneRows);
      const bool low = kBits == 1 || bit % 2 == 0;
      if (low) clear = _mm512_sub_epi16(clear, change[i]);
      if (kBits == 1 || !low) change[i] = _mm512_add_epi16(change[i], change[i]);
    }
    // Eight sums stay in registers.
    __m512i sums[8] = {clear};
    for (int i = 0; i < 3; ++i) {
      for (int e = 0; e < 1 << i; ++e) sums[(1 << i) + e] = _mm512_add_epi16(sums[e], change[i]);
    }
    uint8_t* table = tables + field * kTableBytes;
    for (int high = 0; high < 1 << (bits - 3); ++high) {
      __m512i more = _mm512_setzero_si512();
      if (high & 1) more = change[3];
      if (high & 2) more = _mm512_add_epi16(more, change[4]);
      for (int e = 0; e < 8; ++e)
        store(table + ((high * 8 + e) << kEntryShift), _mm512_add_epi16(sums[e], more));
    }
  }
}

/// Eight byte columns of a block as one word a row. In SignOrder::kColumns word 8 k + i is row kRowOfWord[i]
/// + k, in SignOrder::kQuads word i is row i.
constexpr int kRowOfWord[8] = {0, 16, 8, 24, 32, 48, 40, 56};
inline void gather_columns(const uint8_t* bytes, uint64_t* words) {
  __m512i v[8], u[8];
  for (int p = 0; p < 8; ++p) v[p] = load(bytes + p * kBlockRows);
  for (int p = 0; p < 4; ++p) {
    u[p] = _mm512_unpacklo_epi8(v[2 * p], v[2 * p + 1]);
    u[p + 4] = _mm512_unpackhi_epi8(v[2 * p], v[2 * p + 1]);
  }
  for (int h = 0; h < 2; ++h) {
    const __m512i a = _mm512_unpacklo_epi16(u[4 * h], u[4 * h + 1]),
                  b = _mm512_unpackhi_epi16(u[4 * h], u[4 * h + 1]);
    const __m512i c = _mm512_unpacklo_epi16(u[4 * h + 2], u[4 * h + 3]),
                  d = _mm512_unpackhi_epi16(u[4 * h + 2], u[4 * h + 3]);
    store(words + 32 * h, _mm512_unpacklo_epi32(a, c));
    store(words + 32 * h + 8, _mm512_unpackhi_epi32(a, c));
    store(words + 32 * h + 16, _mm512_unpacklo_epi32(b, d));
    store(words + 32 * h + 24, _mm512_unpackhi_epi32(b, d));
  }
}

inline void gather_quads(const uint8_t* bytes, uint64_t* words) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int r = 0; r < kBlockRows; r += 16) {
    const __m512i a = load(bytes + 4 * r), b = load(bytes + 4 * kBlockRows + 4 * r);
    store(words + r, _mm512_permutex2var_epi32(a, first, b));
    store(words + r + 8, _mm512_permutex2var_epi32(a, second, b));
  }
}

template <SignOrder kOrder>
inline void gather_words(const uint8_t* bytes, uint64_t* words) {
  kOrder == SignOrder::kColumns ? gather_columns(bytes, words) : gather_quads(bytes, words);
}

/// The sums of one pass for one weight row. Fields are rotated to their place, not shifted: that is one
/// instruction, without a copy of the word.
inline __m512i add_fields(const uint8_t* tables, uint64_t word, __m512i sum) {
#pragma GCC unroll 13
  for (int field = 0; field < kFields; ++field) {
    const int shift = (field * kFieldBits - kEntryShift) & 63;
    const uint64_t mask = ((uint64_t{1} << field_bits(field)) - 1) << kEntryShift;
    const uint64_t entry = (word >> shift | word << (64 - shift)) & mask;
    sum = _mm512_add_epi16(sum, load(tables + field * kTableBytes + entry));
  }
  return sum;
}

inline __m512i widen_low(__m512i v) {
  return _mm512_srai_epi32(_mm512_slli_epi32(v, 16), 16);
}
inline __m512i widen_high(__m512i v) {
  return _mm512_srai_epi32(v, 16);
}

/// total = fma(float(sum), row scale * activation scale, total) for half the lanes of a row.
inline void add_scaled(__m512i sum, __m512 row_scale, __m512 activation_scale, float* total) {
  const __m512 scale = _mm512_mul_ps(row_scale, activation_scale);
  _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_load_ps(total)));
}

/// Blocks that are asked for ahead of their use, in the order of use.
constexpr int64_t kAheadBlocks = 2;

/// One pass over a run of blocks: pass `kPass` of `kPasses` that a scale group takes. Until the last, its
/// sums wait in `partial`: of one bit a weight those of all passes together, which fit int16; of two bits
/// each alone.
template <SignOrder kOrder, int kBits, int kPasses, int kPass>
void run_pass(const uint8_t* tables, const uint8_t* bytes, int64_t block_stride, int64_t blocks,
              const float* activation_scales, int16_t* partial, float* totals) {
  constexpr bool kLast = kPass + 1 == kPasses;
  constexpr int kAlone = kBits == 2 ? kPasses - 1 : 1;
  const uint8_t* next = bytes + kPassBytes + (kLast ? 2 * kBlockRows : 0);
  const __m512 scale_low = _mm512_load_ps(activation_scales);
  const __m512 scale_high = _mm512_load_ps(activation_scales + 16);
  // Those of the next block are gathered while this one's rows wait for loads.
  alignas(64) uint64_t words[2][kBlockRows];
  gather_words<kOrder>(bytes, words[0]);
  for (int64_t b = 0; b < blocks; ++b) {
    // Past the end of a matrix nothing is harmed.
    const uint8_t* ahead = b + kAheadBlocks < blocks ? bytes + (b + kAheadBlocks) * block_stride
                                                     : next + (b + kAheadBlocks - blocks) * block_stride;
    for (int line = 0; line < kPassBytes + (kLast ? 2 * kBlockRows : 0); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T0);
    if (b + 1 < blocks) gather_words<kOrder>(bytes + (b + 1) * block_stride, words[(b + 1) % 2]);
    alignas(64) float row_scales[kBlockRows];
    if (kLast) {
      for (int i = 0; i < kBlockRows; i += 16) {
        const void* halves = bytes + b * block_stride + kPassBytes + 2 * i;
        _mm512_store_ps(row_scales + i,
                        _mm512_cvtph_ps(_mm256_load_si256(static_cast<const __m256i*>(halves))));
      }
    }
    for (int i = 0; i < 8; ++i) {
      for (int k = 0; k < 8; ++k) {
        const bool columns = kOrder == SignOrder::kColumns;
        const int row = columns ? kRowOfWord[i] + k : 8 * i + k;
        const uint64_t word = words[b % 2][columns ? 8 * k + i : row];
        int16_t* waiting = partial + (b * kBlockRows + row) * kAlone * kLaneRows;
        const bool go_on = kBits == 1 && kPass > 0;
        const __m512i sum = add_fields(tables, word, go_on ? load(waiting) : _mm512_setzero_si512());
        if constexpr (!kLast) {
          store(waiting + (kBits == 2 ? kPass * kLaneRows : 0), sum);
        } else {
          __m512i low = widen_low(sum), high = widen_high(sum);
          for (int p = 0; kBits == 2 && p < kPass; ++p) {
            const __m512i before = load(waiting + p * kLaneRows);
            low = _mm512_add_epi32(low, widen_low(before));
            high = _mm512_add_epi32(high, widen_high(before));
          }
          const __m512 row_scale = _mm512_set1_ps(row_scales[row]);
          float* total = totals + (b * kBlockRows + row) * kLaneRows;
          add_scaled(low, row_scale, scale_low, total);
          add_scaled(high, row_scale, scale_high, total + 16);
        }
      }
    }
  }
}

/// 16 x 16: column c of the result is register c of `v`.
inline void transpose(__m512i (&v)[16]) {
  __m512i u[16];
  for (int i = 0; i < 16; i += 2) {
    u[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    u[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(u[i], u[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(u[i], u[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(u[i + 1], u[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(u[i + 1], u[i + 3]);
  }
  // v[4 j + r]: columns r, 4 + r, 8 + r and 12 + r of registers 4 j ...
  for (int i = 0; i < 16; i += 8) {
    for (int r = 0; r < 4; ++r) {
      u[i + r] = _mm512_shuffle_i32x4(v[i + r], v[i + r + 4], 0x88);
      u[i + r + 4] = _mm512_shuffle_i32x4(v[i + r], v[i + r + 4], 0xdd);
    }
  }
  for (int r = 0; r < 4; ++r) {
    v[r] = _mm512_shuffle_i32x4(u[r], u[r + 8], 0x88);
    v[r + 8] = _mm512_shuffle_i32x4(u[r], u[r + 8], 0xdd);
    v[r + 4] = _mm512_shuffle_i32x4(u[r + 4], u[r + 12], 0x88);
    v[r + 12] = _mm512_shuffle_i32x4(u[r + 4], u[r + 12], 0xdd);
  }
}

/// out[t][r] = totals[r][t].
void write_rows(const float* totals, int64_t rows, int tile_rows, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += 16) {
    for (int t = 0; t < tile_rows; t += 16) {
      __m512i v[16];
      for (int i = 0; i < 16; ++i) v[i] = load(totals + (r + i) * kLaneRows + t);
      transpose(v);
      for (int i = 0; i < 16; ++i) {
        if (t + i < tile_rows) _mm512_storeu_si512(out + (t + i) * out_stride + r, v[i]);
      }
    }
  }
}

template <SignOrder kOrder, int kBits, int kPasses>
void multiply_type(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride, float* workspace) {
  const int64_t scale_groups = tile.columns / layout.columns;
  const int64_t block_stride = scale_groups * layout.block_bytes();
  float* totals = workspace;
  auto* partial = reinterpret_cast<int16_t*>(workspace + kRunBlocks * kBlockTotals);
  for (int64_t i = 0; i < blocks * kBlockTotals; ++i) totals[i] = 0.0f;
  alignas(64) uint8_t tables[kFields * kTableBytes];
  alignas(64) float activation_scales[kLaneRows] = {};
  for (int64_t g = 0; g < scale_groups; ++g) {
    const int64_t column = g * layout.columns;
    for (int t = 0; t < tile.rows; ++t)
      activation_scales[t] = tile.scales[column / kGroupColumns * tile.rows + t];
    const uint8_t* block = weights + g * layout.block_bytes();
    const int16_t* lanes = tile.lanes + column * kLaneRows;
    const auto run = [&](auto pass_kernel, int pass) {
      build_pass<kBits>(lanes + pass * 64 / kBits * kLaneRows, tables);
      pass_kernel(tables, block + pass * kPassBytes, block_stride, blocks, activation_scales, partial,
                  totals);
    };
    run(run_pass<kOrder, kBits, kPasses, 0>, 0);
    run(run_pass<kOrder, kBits, kPasses, 1>, 1);
    if constexpr (kPasses == 4) {
      run(run_pass<kOrder, kBits, kPasses, 2>, 2);
      run(run_pass<kOrder, kBits, kPasses, 3>, 3);
    }
  }
  write_rows(totals, blocks * kBlockRows, tile.rows, out, out_stride);
}

}  // namespace

void build_avx512_lanes(const int16_t* quanta, int16_t* lanes) {
  for (int c = 0; c < kGroupColumns; c += 16) {
    // A 32-bit lane is a column of rows t and 16 + t.
    __m512i v[16];
    for (int t = 0; t < 16; ++t) {
      const auto widened = [&](int row) {
        const int16_t* q = quanta + row * kGroupColumns + c;
        return _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(q)));
      };
      v[t] = _mm512_or_si512(widened(t), _mm512_slli_epi32(widened(16 + t), 16));
    }
    transpose(v);
    for (int i = 0; i < 16; ++i) store(lanes + (c + i) * kLaneRows, v[i]);
  }
}

void multiply_avx512_lanes(DataType type, SignOrder order, const uint8_t* weights, int64_t blocks,
                           const SignTile& tile, float* out, int64_t out_stride, float* workspace) {
  const auto run = [&](auto columns, auto quads) {
    (order == SignOrder::kColumns ? columns : quads)(sign_layout(type), weights, blocks, tile, out,
                                                     out_stride, workspace);
  };
  constexpr auto kColumns = SignOrder::kColumns, kQuads = SignOrder::kQuads;
  switch (type) {
    case DataType::kQ1_0:
      return run(multiply_type<kColumns, 1, 2>, multiply_type<kQuads, 1, 2>);
    case DataType::kQ2_0:
      return run(multiply_type<kColumns, 2, 2>, multiply_type<kQuads, 2, 2>);
    default:
      return run(multiply_type<kColumns, 2, 4>, multiply_type<kQuads, 2, 4>);
  }
}

}  // namespace niwaki
