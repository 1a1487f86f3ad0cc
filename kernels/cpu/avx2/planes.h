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
/// Bytes of the tables of one group of activations.
constexpr size_t kPlaneTableBytes = kGroupColumns * 8;

/// Of eight columns, those of the bits of an index byte. Q1_0: a byte as it lies. Q2_0: of two bytes that
/// follow each other, a with columns 0-3 and b with 4-7, either all low bits or all high ones, a's at the
/// even places.
constexpr int kColumnOfBit[3][8] = {{}, {0, 1, 2, 3, 4, 5, 6, 7}, {0, 4, 1, 5, 2, 6, 3, 7}};

/// The two planes of a table's sixteen sums.
template <int kLow>
inline void store_planes(__m256i sums, uint8_t* table) {
  const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16((1 << kLow) - 1));
  const __m256i planes = _mm256_packus_epi16(low, _mm256_srli_epi16(sums, kLow));
  _mm256_store_si256(reinterpret_cast<__m256i*>(table), _mm256_permute4x64_epi64(planes, 0xd8));
}

/// See LinearKernels::build_tables. With S the sums of what the bits choose: Q1_0, sum of weights times
/// activations = 2 S - offset. Q2_0, of the low and the high bits: = S_low + 2 S_high - offset.
inline void build_plane_tables(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  const __m256i code = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m256i set[4];
  for (int i = 0; i < 4; ++i) {
    const __m256i bit = _mm256_set1_epi16(static_cast<int16_t>(1 << i));
    set[i] = _mm256_cmpeq_epi16(_mm256_and_si256(code, bit), bit);
  }
  offsets[0] = offsets[1] = 0;
  for (int c = 0; c < kGroupColumns; c += 4) {
    int negative = 0, sum = 0;
    int16_t q[4];
    for (int i = 0; i < 4; ++i) {
      q[i] = quanta[c / 8 * 8 + kColumnOfBit[bits][c % 8 + i]];
      sum += q[i];
      if (q[i] < 0) negative -= q[i];
    }
    __m256i sums = _mm256_set1_epi16(static_cast<int16_t>(negative));
    for (int i = 0; i < 4; ++i)
      sums = _mm256_add_epi16(sums, _mm256_and_si256(set[i], _mm256_set1_epi16(q[i])));
    store_planes<kLowPlaneBits>(sums, tables);
    tables += 32;
    offsets[c / 64] += (bits + 1) * negative + sum;
  }
}

}  // namespace
}  // namespace niwaki
