// The matrix kernels with AVX2: sixteen-entry tables in registers (vpshufb), 32 rows at a time.
#define NIWAKI_SIMD_AVX2
#include "cpu/avx2/linear_lanes.h"
#include "cpu/avx2/planes.h"
#include "cpu/linear_float.h"
#include "cpu/quantize.h"
#include "cpu/stream_prefetch.h"

namespace niwaki {
namespace {

// Q1_0 has the tables of planes.h. Two bits a weight: a nibble is two columns of -1, 0, 1, 2 times the
// activation, 0
// .. 3066 after the offset, twelve bits: six in each plane (four look-ups fit a byte).
template <int kBits>
constexpr int kLowBits = kBits == 1 ? kLowPlaneBits : 6;
/// Byte columns, of two look-ups each, whose low planes are added in bytes.
template <int kBits>
constexpr int kLowRun = kBits == 1 ? 4 : 2;
/// Byte columns whose sums fit 16 bits: 128 columns of at most 32,767, or 32 columns of at most 3 * 511 each.
template <int kBits>
constexpr int kSumRun = kBits == 1 ? 16 : 8;

/// Lanes cost about as much for one row as for sixteen, as much as tables for some twelve.
constexpr int kTableRows = 12;

inline int positive(int x) {
  return x > 0 ? x : 0;
}

/// The two planes of a table's sixteen sums.
inline void store_planes(__m256i sums, int low_bits, uint8_t* table) {
  const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16(static_cast<int16_t>((1 << low_bits) - 1)));
  const __m256i planes = _mm256_packus_epi16(low, _mm256_srli_epi16(sums, low_bits));
  _mm256_store_si256(reinterpret_cast<__m256i*>(table), _mm256_permute4x64_epi64(planes, 0xd8));
}

void build_tables(int /*tile_rows*/, int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  if (bits == 1) return build_plane_tables(bits, quanta, tables, offsets);
  const __m256i code = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i first = _mm256_sub_epi16(_mm256_and_si256(code, _mm256_set1_epi16(3)), one);
  const __m256i second = _mm256_sub_epi16(_mm256_srli_epi16(code, 2), one);
  offsets[0] = offsets[1] = 0;
  for (int c = 0; c < kGroupColumns; c += 2) {
    const int16_t* q = quanta + c;
    const int offset = positive(q[0]) + positive(q[1]) + 2 * (positive(-q[0]) + positive(-q[1]));
    __m256i sums = _mm256_set1_epi16(static_cast<int16_t>(offset));
    sums = _mm256_add_epi16(sums, _mm256_mullo_epi16(first, _mm256_set1_epi16(q[0])));
    sums = _mm256_add_epi16(sums, _mm256_mullo_epi16(second, _mm256_set1_epi16(q[1])));
    store_planes(sums, kLowBits<2>, tables + c / 2 * 32);
    offsets[c / 64] += offset;
  }
}

struct Sums {
  __m256i even, odd;  // unsigned 16-bit: rows 0..15 and 16..31 of the half block
};

/// Makes the compiler hold a value in a register here. gcc 12 otherwise gathers the loads of many look-ups
/// before the first add, runs out of registers and keeps the sums in memory.
inline void keep(__m256i& value) {
  asm("" : "+x"(value));
}

/// Adds the look-ups of one byte column for 32 rows.
inline void look_up(const uint8_t* bytes, const uint8_t* table, __m256i& low, __m256i& high) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const auto plane = [table](int i) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table) + i));
  };
  __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
  keep(both);
  const __m256i first = _mm256_and_si256(both, nibble);
  const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
  low = _mm256_add_epi8(low, _mm256_shuffle_epi8(plane(0), first));
  high = _mm256_add_epi8(high, _mm256_shuffle_epi8(plane(1), first));
  low = _mm256_add_epi8(low, _mm256_shuffle_epi8(plane(2), second));
  high = _mm256_add_epi8(high, _mm256_shuffle_epi8(plane(3), second));
  keep(low);
  keep(high);
}

/// The table sums of 32 rows over kSumRun byte columns. As 16-bit lanes a vector of bytes is even + 256 odd:
/// `all` adds just that, modulo 2^16, `odd` adds it shifted right by 8, and even = all - 256 odd. Nothing is
/// unpacked.
template <int kBits>
inline Sums sum_half(const uint8_t* bytes, const uint8_t* tables) {
  __m256i all_low = _mm256_setzero_si256(), odd_low = all_low, all_high = all_low, odd_high = all_low;
#pragma GCC unroll 1
  for (int p = 0; p < kSumRun<kBits>; p += kLowRun<kBits>) {
    __m256i low = _mm256_setzero_si256();
    for (int s = 0; s < kLowRun<kBits>; s += 2) {
      __m256i high = _mm256_setzero_si256();
      look_up(bytes + (p + s) * kBlockRows, tables + (p + s) * 64, low, high);
      look_up(bytes + (p + s + 1) * kBlockRows, tables + (p + s + 1) * 64, low, high);
      all_high = _mm256_add_epi16(all_high, high);
      odd_high = _mm256_add_epi16(odd_high, _mm256_srli_epi16(high, 8));
    }
    all_low = _mm256_add_epi16(all_low, low);
    odd_low = _mm256_add_epi16(odd_low, _mm256_srli_epi16(low, 8));
  }
  const __m256i all = _mm256_add_epi16(all_low, _mm256_slli_epi16(all_high, kLowBits<kBits>));
  const __m256i odd = _mm256_add_epi16(odd_low, _mm256_slli_epi16(odd_high, kLowBits<kBits>));
  return {_mm256_sub_epi16(all, _mm256_slli_epi16(odd, 8)), odd};
}

/// out = fma(float(sum), scale of the row * scale of the activations, out), for eight rows.
inline void add_scaled(__m256i sums, const uint8_t* scales, __m256 activation_scale, float* out) {
  const __m256 scale = _mm256_mul_ps(
      _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(scales))), activation_scale);
  _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, _mm256_loadu_ps(out)));
}

/// One block of one bit a weight: 64 rows, 128 columns.
inline void multiply_block_1(const uint8_t* block, const uint8_t* tables, int32_t offset, float scale,
                             float* out) {
  const __m256i offsets = _mm256_set1_epi16(static_cast<int16_t>(offset));
  const __m256 activation_scale = _mm256_set1_ps(scale);
  const uint8_t* scales = block + 16 * kBlockRows;
  for (int half = 0; half < 2; ++half) {
    const Sums sums = sum_half<1>(block + 32 * half, tables);
    const __m256i parts[2] = {sums.even, sums.odd};
    for (int i = 0; i < 2; ++i) {
      // Twice a sum wraps, and what is left after the offset is again within int16.
      const __m256i sum = _mm256_sub_epi16(_mm256_add_epi16(parts[i], parts[i]), offsets);
      const int row = 32 * half + 16 * i;
      add_scaled(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)), scales + 2 * row, activation_scale,
                 out + row);
      add_scaled(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1)), scales + 2 * row + 16,
                 activation_scale, out + row + 8);
    }
  }
}

/// One block of two bits a weight: 64 rows, 4 * kByteColumns columns.
template <int kByteColumns>
inline void multiply_block_2(const uint8_t* block, const uint8_t* tables, int32_t offset, float scale,
                             float* out) {
  const __m256 activation_scale = _mm256_set1_ps(scale);
  const uint8_t* scales = block + kByteColumns * kBlockRows;
  for (int half = 0; half < 2; ++half) {
    __m256i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm256_set1_epi32(-offset);
    for (int p = 0; p < kByteColumns; p += kSumRun<2>) {
      const Sums run = sum_half<2>(block + p * kBlockRows + 32 * half, tables + p * 64);
      sums[0] = _mm256_add_epi32(sums[0], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(run.even)));
      sums[1] = _mm256_add_epi32(sums[1], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(run.even, 1)));
      sums[2] = _mm256_add_epi32(sums[2], _mm256_cvtepu16_epi32(_mm256_castsi256_si128(run.odd)));
      sums[3] = _mm256_add_epi32(sums[3], _mm256_cvtepu16_epi32(_mm256_extracti128_si256(run.odd, 1)));
    }
    for (int i = 0; i < 4; ++i) {
      const int row = 32 * half + 8 * i;
      add_scaled(sums[i], scales + 2 * row, activation_scale, out + row);
    }
  }
}

/// Asks for what comes after these weights: the processor's own prefetching stops at every page. Past the end
/// of a matrix nothing is harmed.
NIWAKI_INLINE void ask_ahead_of(const uint8_t* weights, int bytes) {
  if (kStreamIntoFirstLevel) {
    for (int i = 0; i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(weights) + 9 * 1024 + i, _MM_HINT_T0);
  } else {
    for (int i = 0; i < bytes; i += 64) ask_ahead_by_second_level(weights + i);
  }
}

void multiply_sign(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* workspace) {
  if (tile.rows > kTableRows) return multiply_lanes(type, weights, blocks, tile, out, out_stride, workspace);
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
      ask_ahead_of(block, layout.block_bytes());
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

const LinearKernels kAvx2LinearKernels = {
    SignOrder::kColumns, quantize_group, kLaneRows,     kTableRows,          1,          nibble_table_bytes,
    build_tables,        build_lanes,    multiply_sign, multiply_float_rows, swiglu_rows};

}  // namespace niwaki
