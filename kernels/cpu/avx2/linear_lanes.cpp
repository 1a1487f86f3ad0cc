// Sign matrices times many rows of a step: the method of the four Russians (Arlazarov et al., 1970). Lanes
// are the 16 rows of the tile, in int16. For every six weight bits the 64 possible sums of activations are
// built once; a weight row then adds the one that its bits choose: one load and add for 6 x 16 products of
// Q1_0, or 3 x 16 of Q2_0.
//
// A pass takes 64 bits of every weight row: eleven fields of six bits (the last of four), whose tables, 22
// KB, stay in the first-level cache while the rows of a run go by.
#include "cpu/avx2/linear_lanes.h"

#include <immintrin.h>

namespace niwaki {
namespace {

constexpr int kFields = 11;
constexpr int kFieldBits = 6;
constexpr int kEntries = 1 << kFieldBits;
/// Bytes of a table entry: 16 lanes.
constexpr int kEntryShift = 5;

inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
inline void store(void* p, __m256i v) {
  _mm256_store_si256(static_cast<__m256i*>(p), v);
}

/// The tables of one pass. Bits of a weight: 1, -1 or +1 times the activation; or 2, code - 1 times it.
template <int kBits>
inline void build_pass(const int16_t* lanes, int16_t* tables) {
  for (int field = 0; field < kFields; ++field) {
    const int bits = field + 1 < kFields ? kFieldBits : 64 - kFieldBits * (kFields - 1);
    int16_t* table = tables + field * kEntries * kLaneRows;
    __m256i all_clear = _mm256_setzero_si256();
    for (int i = 0; i < bits / kBits; ++i)
      all_clear = _mm256_sub_epi16(all_clear, load(lanes + i * kLaneRows));
    store(table, all_clear);
    for (int bit = 0; bit < bits; ++bit) {
      // What setting the bit adds.
      __m256i change = load(lanes + bit / kBits * kLaneRows);
      if (kBits == 1 || bit % 2 == 1) change = _mm256_add_epi16(change, change);
      for (int e = 0; e < 1 << bit; ++e) {
        store(table + ((1 << bit) + e) * kLaneRows, _mm256_add_epi16(load(table + e * kLaneRows), change));
      }
    }
    lanes += bits / kBits * kLaneRows;
  }
}

/// Eight byte columns of 32 rows (half a block) as one word a row. Word 4 k + quarter is row
/// kRowOfQuarter[quarter] + k.
constexpr int kRowOfQuarter[4] = {0, 16, 8, 24};
inline void gather_words(const uint8_t* bytes, uint64_t* words) {
  __m256i v[8], u[8];
  for (int p = 0; p < 8; ++p) v[p] = load(bytes + p * kBlockRows);
  for (int p = 0; p < 4; ++p) {
    u[p] = _mm256_unpacklo_epi8(v[2 * p], v[2 * p + 1]);
    u[p + 4] = _mm256_unpackhi_epi8(v[2 * p], v[2 * p + 1]);
  }
  for (int h = 0; h < 2; ++h) {
    const __m256i a = _mm256_unpacklo_epi16(u[4 * h], u[4 * h + 1]),
                  b = _mm256_unpackhi_epi16(u[4 * h], u[4 * h + 1]);
    const __m256i c = _mm256_unpacklo_epi16(u[4 * h + 2], u[4 * h + 3]),
                  d = _mm256_unpackhi_epi16(u[4 * h + 2], u[4 * h + 3]);
    store(words + 16 * h, _mm256_unpacklo_epi32(a, c));
    store(words + 16 * h + 4, _mm256_unpackhi_epi32(a, c));
    store(words + 16 * h + 8, _mm256_unpacklo_epi32(b, d));
    store(words + 16 * h + 12, _mm256_unpackhi_epi32(b, d));
  }
}

/// The sums of one pass for one weight row.
inline __m256i add_fields(const int16_t* tables, uint64_t word, __m256i sum) {
  const char* base = reinterpret_cast<const char*>(tables);
  constexpr uint64_t kMask = (kEntries - 1) << kEntryShift;
  sum = _mm256_add_epi16(sum, load(base + (word << kEntryShift & kMask)));
#pragma GCC unroll 10
  for (int field = 1; field < kFields; ++field) {
    const uint64_t entry = word >> (field * kFieldBits - kEntryShift) & kMask;
    sum = _mm256_add_epi16(sum, load(base + field * (kEntries << kEntryShift) + entry));
  }
  return sum;
}

inline __m256i widen_low(__m256i v) {
  return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v));
}
inline __m256i widen_high(__m256i v) {
  return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1));
}

/// totals[row] = fma(float(sum), row scale * activation scale, totals[row]) for the 16 lanes of a row.
inline void add_scaled(__m256i low, __m256i high, __m256 row_scale, const float* activation_scales,
                       float* totals) {
  const __m256 scale_low = _mm256_mul_ps(row_scale, _mm256_load_ps(activation_scales));
  const __m256 scale_high = _mm256_mul_ps(row_scale, _mm256_load_ps(activation_scales + 8));
  _mm256_store_ps(totals, _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), scale_low, _mm256_load_ps(totals)));
  _mm256_store_ps(totals + 8,
                  _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), scale_high, _mm256_load_ps(totals + 8)));
}

/// One pass over a run of blocks: pass `kPass` of `kPasses` that a scale group takes. Sums of two bits a
/// weight may not fit int16 beyond one pass (32 columns of at most 2 * 511) and wait as int32; those of one
/// bit do over the whole group.
template <int kBits, bool kFirst, bool kLast>
inline void run_pass(const int16_t* tables, const uint8_t* bytes, const uint8_t* scales, int64_t block_stride,
                     int64_t blocks, const float* activation_scales, int32_t* partial, float* totals) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int half = 0; half < 2; ++half) {
      alignas(32) uint64_t words[32];
      gather_words(bytes + b * block_stride + 32 * half, words);
      alignas(32) float row_scales[32];
      if (kLast) {
        for (int i = 0; i < 32; i += 8) {
          const void* halves = scales + b * block_stride + 2 * (32 * half + i);
          _mm256_store_ps(row_scales + i,
                          _mm256_cvtph_ps(_mm_load_si128(static_cast<const __m128i*>(halves))));
        }
      }
      for (int i = 0; i < 32; ++i) {
        const int r = kRowOfQuarter[i / 8] + i % 8;
        const uint64_t word = words[i % 8 * 4 + i / 8];
        const int64_t row = b * kBlockRows + 32 * half + r;
        if constexpr (kBits == 1) {
          int16_t* waiting = reinterpret_cast<int16_t*>(partial) + row * kLaneRows;
          const __m256i sum = add_fields(tables, word, kFirst ? _mm256_setzero_si256() : load(waiting));
          if (!kLast) {
            store(waiting, sum);
          } else {
            add_scaled(widen_low(sum), widen_high(sum), _mm256_broadcast_ss(row_scales + r),
                       activation_scales, totals + row * kLaneRows);
          }
        } else {
          int32_t* waiting = partial + row * kLaneRows;
          const __m256i sum = add_fields(tables, word, _mm256_setzero_si256());
          __m256i low = widen_low(sum), high = widen_high(sum);
          if (!kFirst) {
            low = _mm256_add_epi32(low, load(waiting));
            high = _mm256_add_epi32(high, load(waiting + 8));
          }
          if (!kLast) {
            store(waiting, low);
            store(waiting + 8, high);
          } else {
            add_scaled(low, high, _mm256_broadcast_ss(row_scales + r), activation_scales,
                       totals + row * kLaneRows);
          }
        }
      }
    }
  }
}

/// out[t][r] = totals[r][t], 8 x 8 at a time.
inline void write_rows(const float* totals, int64_t rows, int tile_rows, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += 8) {
    for (int t = 0; t < tile_rows; t += 8) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = _mm256_load_ps(totals + (r + i) * kLaneRows + t);
      for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
      }
      for (int i = 0; i < 8 && t + i < tile_rows; ++i) {
        const __m256 lanes = i < 4 ? _mm256_permute2f128_ps(a[i], a[i + 4], 0x20)
                                   : _mm256_permute2f128_ps(a[i - 4], a[i], 0x31);
        _mm256_storeu_ps(out + (t + i) * out_stride + r, lanes);
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
  float* totals = workspace;
  auto* partial = reinterpret_cast<int32_t*>(workspace + kRunRows * kLaneRows);
  for (int64_t i = 0; i < blocks * kBlockRows * kLaneRows; ++i) totals[i] = 0.0f;
  alignas(64) int16_t tables[kFields * kEntries * kLaneRows];
  alignas(32) float activation_scales[kLaneRows] = {};
  for (int64_t g = 0; g < scale_groups; ++g) {
    const int64_t column = g * layout.columns;
    for (int t = 0; t < tile.rows; ++t)
      activation_scales[t] = tile.scales[column / kGroupColumns * tile.rows + t];
    const uint8_t* block = weights + g * layout.block_bytes();
    const uint8_t* scales = block + layout.byte_columns * kBlockRows;
    for (int pass = 0; pass < kPasses; ++pass) {
      build_pass<kBits>(tile.lanes + (column + pass * 64 / kBits) * kLaneRows, tables);
      const uint8_t* bytes = block + pass * 8 * kBlockRows;
      if (pass == 0) {
        run_pass<kBits, true, false>(tables, bytes, scales, block_stride, blocks, activation_scales, partial,
                                     totals);
      } else if (pass + 1 < kPasses) {
        run_pass<kBits, false, false>(tables, bytes, scales, block_stride, blocks, activation_scales, partial,
                                      totals);
      } else {
        run_pass<kBits, false, true>(tables, bytes, scales, block_stride, blocks, activation_scales, partial,
                                     totals);
      }
    }
  }
  write_rows(totals, blocks * kBlockRows, tile.rows, out, out_stride);
}

}  // namespace

void build_lanes(const int16_t* quanta, int16_t* lanes) {
  for (int c = 0; c < kGroupColumns; c += 8) {
    for (int t = 0; t < kLaneRows; t += 8) {
      __m128i a[8], b[8];
      for (int i = 0; i < 8; ++i) {
        a[i] = _mm_load_si128(reinterpret_cast<const __m128i*>(quanta + (t + i) * kGroupColumns + c));
      }
      for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
      }
      for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
      }
      for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
      }
      for (int i = 0; i < 8; ++i)
        _mm_store_si128(reinterpret_cast<__m128i*>(lanes + (c + i) * kLaneRows + t), b[i]);
    }
  }
}

void multiply_lanes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                    int64_t out_stride, float* workspace) {
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
