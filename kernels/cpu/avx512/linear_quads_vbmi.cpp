// Sign matrices times few rows of a step with AVX-512 VBMI and VNNI. A register of weights is sixteen rows by
// a quad of byte columns, a table register sixteen sums of activations for each of those four. vpermb looks
// up in all four at once, as two bits of an index say which, and vpdpbusd adds the four look-ups of a row to
// its 32-bit sum: nothing is drained, split by rows or put in order. Weights are read as they lie, once, in
// one stream.
//
// A byte of a row is cut in two: half 0 is its bits 0, 1, 4 and 5, half 1 the others. The sum of weights
// times activations that a half stands for, at most 4 * 511 or 2 * 2 * 511, is split in a plane of its low
// seven bits and one of what is above.
//
//   tables of a quad:   half 0: low plane, 64 bytes | high plane, 64 bytes      half 1: low | high
//
// An entry stands at (bits 4 and 5 of the half) * 16 + (byte column) * 4 + (bits 0 and 1): in this order sums
// of 32 bits are narrowed to bytes.
#include <immintrin.h>

#include <cstring>

#include "cpu/avx512/linear_quads.h"
#include "cpu/stream_prefetch.h"

namespace niwaki {
namespace {

constexpr int kPlaneBytes = 64;
constexpr int kHalfBytes = 2 * kPlaneBytes;
constexpr int kQuadTableBytes = 2 * kHalfBytes;
constexpr int kLowBits = 7;
/// Rows of a register, and registers of a block.
constexpr int kLanes = 16;
constexpr int kLines = kBlockRows / kLanes;

/// Makes the compiler hold a value in a register here. gcc 12 otherwise loads a table once a look-up.
inline void keep(__m512i& value) {
  asm("" : "+v"(value));
}

inline __m512i load(const uint8_t* p) {
  return _mm512_load_si512(p);
}

/// What the sixteen values of a half weight four activations with, in two pairs.
struct Weights {
  alignas(64) int16_t pair[2][32];

  constexpr Weights(int bits, int half) : pair{} {
    for (int entry = 0; entry < 16; ++entry) {
      for (int p = 0; p < 2; ++p) {
        const int code = p == 0 ? entry & 3 : entry >> 2;  // of two bits of the byte
        int16_t* w = pair[p] + 2 * entry;
        if (bits == 1) {
          w[0] = static_cast<int16_t>(2 * (code & 1) - 1);
          w[1] = static_cast<int16_t>(2 * (code >> 1) - 1);
        } else {
          w[half] = static_cast<int16_t>(code - 1);
        }
      }
    }
  }
};

/// Two activations side by side, in every lane.
inline __m512i pair_at(const int16_t* quanta) {
  int32_t pair;
  std::memcpy(&pair, quanta, sizeof pair);
  return _mm512_set1_epi32(pair);
}

template <int kBits>
void build(const int16_t* quanta, uint8_t* tables) {
  static constexpr Weights kWeights[2] = {Weights(kBits, 0), Weights(kBits, 1)};
  const __m512i zero = _mm512_setzero_si512(), low_bits = _mm512_set1_epi16((1 << kLowBits) - 1);
  constexpr int kByteColumns = 8 / kBits;
  for (int quad = 0; quad < kGroupColumns / (4 * kByteColumns); ++quad) {
    for (int half = 0; half < 2; ++half, tables += kHalfBytes) {
      const __m512i first = _mm512_load_si512(kWeights[half].pair[0]),
                    second = _mm512_load_si512(kWeights[half].pair[1]);
      __m512i sums[4];
      for (int c = 0; c < 4; ++c) {
        const int16_t* q = quanta + (4 * quad + c) * kByteColumns + (kBits == 1 ? 2 * half : 0);
        sums[c] = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(zero, first, pair_at(q)), second,
                                      pair_at(q + kByteColumns / 2));
      }
      const __m512i a = _mm512_packs_epi32(sums[0], sums[1]), b = _mm512_packs_epi32(sums[2], sums[3]);
      _mm512_store_si512(tables,
                         _mm512_packs_epi16(_mm512_and_si512(a, low_bits), _mm512_and_si512(b, low_bits)));
      _mm512_store_si512(tables + kPlaneBytes,
                         _mm512_packs_epi16(_mm512_srai_epi16(a, kLowBits), _mm512_srai_epi16(b, kLowBits)));
    }
  }
}

/// One quad of byte columns of 64 rows, for kRows rows of the step whose tables are `stride` bytes apart.
template <int kRows>
inline void look_up(const uint8_t* bytes, const uint8_t* tables, size_t stride,
                    __m512i (&sums)[kRows][kLines]) {
  const __m512i half_bits = _mm512_set1_epi8(0x33), column = _mm512_set1_epi32(0x0c080400);
  const __m512i low_weight = _mm512_set1_epi8(1), high_weight = _mm512_set1_epi8(static_cast<char>(128));
  for (int line = 0; line < kLines; ++line) ask_ahead_by_second_level(bytes + line * 64);
  for (int half = 0; half < 2; ++half) {
    __m512i index[kLines];
    for (int line = 0; line < kLines; ++line) {
      const __m512i v = load(bytes + line * 64);
      constexpr int kAndOr = 0xea;
      index[line] =
          _mm512_ternarylogic_epi32(half == 0 ? v : _mm512_srli_epi16(v, 2), half_bits, column, kAndOr);
      keep(index[line]);
    }
    for (int t = 0; t < kRows; ++t) {
      const uint8_t* table = tables + static_cast<size_t>(t) * stride + half * kHalfBytes;
      __m512i low = load(table), high = load(table + kPlaneBytes);
      keep(low);
      keep(high);
      for (int line = 0; line < kLines; ++line) {
        __m512i sum =
            _mm512_dpbusd_epi32(sums[t][line], low_weight, _mm512_permutexvar_epi8(index[line], low));
        sum = _mm512_dpbusd_epi32(sum, high_weight, _mm512_permutexvar_epi8(index[line], high));
        keep(sum);
        sums[t][line] = sum;
      }
    }
  }
}

/// A scale group has kQuads quads, a group of activations kParts scale groups.
template <int kQuads, int kParts, int kRows>
void multiply_rows(const SignLayout layout, const uint8_t* block, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  constexpr size_t kStride = size_t{kQuads} * kParts * kQuadTableBytes;
  const int64_t scale_groups = tile.columns / layout.columns;
  for (int64_t b = 0; b < blocks; ++b, out += kBlockRows) {
    for (int64_t g = 0; g < scale_groups; ++g, block += layout.block_bytes()) {
      const int64_t at = g / kParts * kRows, part = g % kParts;
      const uint8_t* tables = tile.tables[layout.bits] + static_cast<size_t>(at) * kStride +
                              static_cast<size_t>(part) * kQuads * kQuadTableBytes;
      __m512i sums[kRows][kLines];
      for (int t = 0; t < kRows; ++t) {
        for (int line = 0; line < kLines; ++line) sums[t][line] = _mm512_setzero_si512();
      }
#pragma GCC unroll 1
      for (int quad = 0; quad < kQuads; ++quad)
        look_up(block + quad * 4 * kBlockRows, tables + quad * kQuadTableBytes, kStride, sums);
      const uint8_t* scales = block + layout.byte_columns * kBlockRows;
      for (int line = 0; line < 2; ++line) ask_ahead_by_second_level(scales + line * 64);
      for (int t = 0; t < kRows; ++t) {
        const __m512 activation_scale = _mm512_set1_ps(tile.scales[at + t]);
        for (int line = 0; line < kLines; ++line) {
          const __m512 row_scales = _mm512_cvtph_ps(
              _mm256_load_si256(reinterpret_cast<const __m256i*>(scales + 2 * kLanes * line)));
          float* to = out + t * out_stride + kLanes * line;
          const __m512 before = g == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
          _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][line]),
                                               _mm512_mul_ps(row_scales, activation_scale), before));
        }
      }
    }
  }
}

template <int kQuads, int kParts>
void multiply_type(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  constexpr decltype(&multiply_rows<kQuads, kParts, 1>) kByRows[kQuadRows] = {
      multiply_rows<kQuads, kParts, 1>, multiply_rows<kQuads, kParts, 2>, multiply_rows<kQuads, kParts, 3>,
      multiply_rows<kQuads, kParts, 4>, multiply_rows<kQuads, kParts, 5>};
  kByRows[tile.rows - 1](layout, weights, blocks, tile, out, out_stride);
}

}  // namespace

void build_quads(int bits, const int16_t* quanta, uint8_t* tables) {
  bits == 1 ? build<1>(quanta, tables) : build<2>(quanta, tables);
}

void multiply_quads(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                    int64_t out_stride) {
  const SignLayout layout = sign_layout(type);
  switch (type) {
    case DataType::kQ1_0:
      return multiply_type<4, 1>(layout, weights, blocks, tile, out, out_stride);
    case DataType::kQ2_0:
      return multiply_type<4, 2>(layout, weights, blocks, tile, out, out_stride);
    default:
      return multiply_type<8, 1>(layout, weights, blocks, tile, out, out_stride);
  }
}

}  // namespace niwaki
