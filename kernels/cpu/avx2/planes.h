// Tables of four columns' sums, split in two planes of bytes, for the tiers that look up bytes: AVX2, and
// AVX-512 for few rows of the step. Everything has internal linkage (see simd.h).
//
// A weight bit chooses 0 or 1 times its column's activation: a weight of Q1_0 is twice its bit less one, one
// of Q2_0 its low bit plus twice its high bit less one, so one table serves all types. A table has the sums
// of what the 16 values of four bits choose, made non-negative by adding the magnitudes of what is negative:
// at most 4 * 511 = 2044, eleven bits. Five are in the low plane (eight look-ups fit a byte), six in the high
// (four do).
//
//   tables of a group, 64 bytes for eight columns:   low plane 16 | high plane 16 | low plane 16 | high plane
//   16
//                                                    `------ low nibble ------'   `------ high nibble -----'
#pragma once
#include <immintrin.h>

#include "cpu/linear_kernels.h"

namespace niwaki {
namespace {

constexpr int kLowPlaneBits = 5;

/// Of eight columns, those of the bits of an index byte. Q1_0: a byte as it lies. Q2_0: of two bytes that
/// follow each other, a with columns 0-3 and b with 4-7, either all low bits or all high ones, a's at the
/// even places.
constexpr int kColumnOfBit[3][8] = {{}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 4, 1, 5, 2, 6, 3, 7}};

/// See LinearKernels::build_tables. With S the sums of what the bits choose: Q1_0, sum of weights times
/// activations = 2 S - offset. Q2_0, of the low and the high bits: = S_low + 2 S_high - offset.
inline void build_plane_tables(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  // Column i of a table adds max(q, 0) to the codes whose bit i is set, max(-q, 0) to the others. A 128-bit
  // lane holds both of a table's four columns, [positive 0-3 | negative 0-3], and these choose eight codes'.
  const auto choose = [](int column, int codes) {  // bit c: whether code c has the column's bit
    alignas(16) uint8_t at[16];
    for (int code = 0; code < 8; ++code) {
      const int word = column + (codes >> code & 1 ? 0 : 4);
      at[2 * code] = static_cast<uint8_t>(2 * word);
      at[2 * code + 1] = static_cast<uint8_t>(2 * word + 1);
    }
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
  };
  const __m256i column0 = choose(0, 0xaa), column1 = choose(1, 0xcc), column2 = choose(2, 0xf0);
  const __m256i clear3 = choose(3, 0x00), set3 = choose(3, 0xff);
  alignas(16) uint8_t order_bytes[16];
  for (int i = 0; i < 16; ++i) order_bytes[i] = static_cast<uint8_t>(2 * kColumnOfBit[bits][i / 2] + i % 2);
  const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(order_bytes));
  const __m256i low_bits = _mm256_set1_epi16((1 << kLowPlaneBits) - 1);

  for (int half = 0; half < 2; ++half) {
    __m128i sum = _mm_setzero_si128();
    for (int c = half * kGroupColumns / 2; c < (half + 1) * kGroupColumns / 2; c += 8) {
      const __m128i q = _mm_shuffle_epi8(_mm_load_si128(reinterpret_cast<const __m128i*>(quanta + c)), order);
      const __m128i zero = _mm_setzero_si128();
      const __m128i positive = _mm_max_epi16(q, zero), negative = _mm_max_epi16(_mm_sub_epi16(zero, q), zero);
      // sum of q + (bits + 1) times that of the negative = sum of the positive + bits times that
      sum = _mm_add_epi32(
          sum, _mm_add_epi32(_mm_madd_epi16(positive, _mm_set1_epi16(1)),
                             _mm_madd_epi16(negative, _mm_set1_epi16(static_cast<int16_t>(bits)))));
      const __m256i both =
          _mm256_set_m128i(_mm_unpackhi_epi64(positive, negative), _mm_unpacklo_epi64(positive, negative));
      const __m256i three = _mm256_add_epi16(
          _mm256_add_epi16(_mm256_shuffle_epi8(both, column0), _mm256_shuffle_epi8(both, column1)),
          _mm256_shuffle_epi8(both, column2));
      const __m256i first = _mm256_add_epi16(three, _mm256_shuffle_epi8(both, clear3));  // codes 0-7
      const __m256i second = _mm256_add_epi16(three, _mm256_shuffle_epi8(both, set3));   // codes 8-15
      const __m256i low =
          _mm256_packus_epi16(_mm256_and_si256(first, low_bits), _mm256_and_si256(second, low_bits));
      const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(first, kLowPlaneBits),
                                               _mm256_srli_epi16(second, kLowPlaneBits));
      auto* to = reinterpret_cast<__m256i*>(tables + c * 8);
      _mm256_store_si256(to, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_store_si256(to + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
    alignas(16) int32_t sums[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(sums), sum);
    offsets[half] = sums[0] + sums[1] + sums[2] + sums[3];
  }
}

}  // namespace
}  // namespace niwaki
