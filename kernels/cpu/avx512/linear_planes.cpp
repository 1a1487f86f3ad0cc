// Sign matrices times few rows of a step with AVX-512: sixteen-entry tables of bytes, 64 rows at a time. What
// limits is memory, so weights are read as they lie, once, in one stream, and the tables (1 KB for each 128
// columns) are small enough to stay in the first-level cache beside it: tables of the second-level cache take
// half of the rate at which weights arrive.
#include "cpu/avx512/linear_planes.h"

#include "cpu/avx2/planes.h"
#include "cpu/stream_prefetch.h"

namespace niwaki {
namespace {

/// Asks for what comes after a line of weights. Past the end of a matrix nothing is harmed.
template <bool kIntoFirstLevel>
__attribute__((always_inline)) inline void ask_ahead_of(const uint8_t* line) {
  if constexpr (kIntoFirstLevel) {
    _mm_prefetch(reinterpret_cast<const char*>(line) + 9 * 1024, _MM_HINT_NTA);
  } else {
    ask_ahead_by_second_level(line);
  }
}

/// Makes the compiler hold a value in a register here. gcc 12 otherwise gathers the loads of many look-ups
/// before the first add, runs out of registers and keeps the sums in memory.
inline void keep(__m512i& value) {
  asm("" : "+v"(value));
}

inline __m512i load(const uint8_t* p) {
  return _mm512_load_si512(p);
}

/// The four planes of a byte column, each an operand of vpshufb: the low and the high one of the low nibble,
/// and those of the high nibble.
struct Planes {
  __m512i plane[4];
  explicit Planes(const uint8_t* tables) {
    for (int p = 0; p < 4; ++p)
      plane[p] = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(tables + p * 16)));
  }
};
struct Indices {
  __m512i of_nibble[2];
  Indices() = default;
  explicit Indices(__m512i bytes) {
    const __m512i nibble = _mm512_set1_epi8(15);
    of_nibble[0] = _mm512_and_si512(bytes, nibble);
    of_nibble[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble);
  }
};
inline __m512i look_up(const Planes& planes, int plane, const Indices& indices) {
  return _mm512_shuffle_epi8(planes.plane[plane], indices.of_nibble[plane / 2]);
}

/// The bytes of table pair `i` for the 64 rows of a block: of one bit a weight, or of the low and of
/// the high bits of two.
template <int kBits, bool kIntoFirstLevel>
inline void load_bytes(const uint8_t* bytes, int i, __m512i (&of)[kBits]) {
  for (int k = 0; k < kBits; ++k) ask_ahead_of<kIntoFirstLevel>(bytes + (i * kBits + k) * kBlockRows);
  if constexpr (kBits == 1) {
    of[0] = load(bytes + i * kBlockRows);
    keep(of[0]);
  } else {
    const __m512i a = load(bytes + 2 * i * kBlockRows), b = load(bytes + (2 * i + 1) * kBlockRows);
    // mask ? x : y, bit by bit. What a shift brings from the neighboring byte is not chosen.
    constexpr int kSelect = 0xca;
    of[0] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x55), a, _mm512_slli_epi16(b, 1), kSelect);
    of[1] = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x55), _mm512_srli_epi16(a, 1), b, kSelect);
  }
}

/// Unsigned 16-bit lanes: rows 0-15 and 32-47, and rows 16-31 and 48-63.
struct Sums {
  __m512i even, odd;
};

/// The table sums of 64 rows over kTables pairs of tables, for kRows rows of the step. As 16-bit lanes a
/// vector of bytes is even + 256 odd: `all` adds just that, modulo 2^16, `odd` adds it shifted right by 8,
/// and even = all - 256 odd. Nothing is unpacked.
template <int kBits, int kTables, int kRows, bool kIntoFirstLevel>
inline void look_up(const uint8_t* bytes, const uint8_t* tables, Sums (&sums)[kRows][kBits]) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i all_low[kRows][kBits], odd_low[kRows][kBits], all_high[kRows][kBits], odd_high[kRows][kBits];
  for (int t = 0; t < kRows; ++t) {
    for (int k = 0; k < kBits; ++k) all_low[t][k] = odd_low[t][k] = all_high[t][k] = odd_high[t][k] = zero;
  }
#pragma GCC unroll 4
  for (int i = 0; i < kTables; i += 4) {
    __m512i low[kRows][kBits], high[kRows][kBits];
#pragma GCC unroll 4
    for (int j = i; j < i + 4; ++j) {
      __m512i bytes_of[kBits];
      load_bytes<kBits, kIntoFirstLevel>(bytes, j, bytes_of);
      Indices indices[kBits];
      for (int k = 0; k < kBits; ++k) indices[k] = Indices(bytes_of[k]);
      for (int t = 0; t < kRows; ++t) {
        const Planes planes(tables + static_cast<size_t>(t) * kPlaneTableBytes + j * 64);
        for (int k = 0; k < kBits; ++k) {
          const __m512i low_first = look_up(planes, 0, indices[k]);
          const __m512i high_first = look_up(planes, 1, indices[k]);
          low[t][k] = j == i ? low_first : _mm512_add_epi8(low[t][k], low_first);
          high[t][k] = j % 2 == 0 ? high_first : _mm512_add_epi8(high[t][k], high_first);
          low[t][k] = _mm512_add_epi8(low[t][k], look_up(planes, 2, indices[k]));
          high[t][k] = _mm512_add_epi8(high[t][k], look_up(planes, 3, indices[k]));
          keep(low[t][k]);
          keep(high[t][k]);
          if (j % 2 == 1) {
            all_high[t][k] = _mm512_add_epi16(all_high[t][k], high[t][k]);
            odd_high[t][k] = _mm512_add_epi16(odd_high[t][k], _mm512_srli_epi16(high[t][k], 8));
          }
        }
      }
    }
    for (int t = 0; t < kRows; ++t) {
      for (int k = 0; k < kBits; ++k) {
        all_low[t][k] = _mm512_add_epi16(all_low[t][k], low[t][k]);
        odd_low[t][k] = _mm512_add_epi16(odd_low[t][k], _mm512_srli_epi16(low[t][k], 8));
      }
    }
  }
  for (int t = 0; t < kRows; ++t) {
    for (int k = 0; k < kBits; ++k) {
      const __m512i all = _mm512_add_epi16(all_low[t][k], _mm512_slli_epi16(all_high[t][k], kLowPlaneBits));
      const __m512i odd = _mm512_add_epi16(odd_low[t][k], _mm512_slli_epi16(odd_high[t][k], kLowPlaneBits));
      sums[t][k] = {_mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8)), odd};
    }
  }
}

/// Sixteen integer sums of weights times activations: rows 16 q .. 16 q + 15 of the block.
template <int kBits>
inline __m512i sum_of_quarter(const Sums (&sums)[kBits], int q, int32_t offset) {
  const auto lanes = [q](const Sums& s) {
    const __m512i v = q % 2 == 0 ? s.even : s.odd;
    return q < 2 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
  };
  if constexpr (kBits == 1) {
    // Twice a sum wraps, and what is left after the offset is again within int16.
    const __m256i s = lanes(sums[0]);
    const __m256i offsets = _mm256_set1_epi16(static_cast<int16_t>(offset));
    return _mm512_cvtepi16_epi32(_mm256_sub_epi16(_mm256_add_epi16(s, s), offsets));
  } else {
    const __m512i low = _mm512_cvtepu16_epi32(lanes(sums[0])), high = _mm512_cvtepu16_epi32(lanes(sums[1]));
    return _mm512_sub_epi32(_mm512_add_epi32(low, _mm512_add_epi32(high, high)), _mm512_set1_epi32(offset));
  }
}

/// A scale group has kTables pairs of tables, a group of activations kParts scale groups.
template <int kBits, int kTables, int kParts, int kRows, bool kIntoFirstLevel>
void multiply_rows(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  const int64_t scale_groups = tile.columns / layout.columns;
  const uint8_t* block = weights;
  for (int64_t b = 0; b < blocks; ++b) {
    __m512 totals[kRows][4];
    for (int t = 0; t < kRows; ++t) {
      for (int q = 0; q < 4; ++q) totals[t][q] = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < scale_groups; ++g, block += layout.block_bytes()) {
      const int64_t at = g / kParts * kRows, part = g % kParts;
      Sums sums[kRows][kBits];
      look_up<kBits, kTables, kRows, kIntoFirstLevel>(
          block, tile.tables[kBits] + static_cast<size_t>(at) * kPlaneTableBytes + part * kTables * 64, sums);
      const uint8_t* scales = block + layout.byte_columns * kBlockRows;
      for (int line = 0; line < 2; ++line) ask_ahead_of<kIntoFirstLevel>(scales + line * 64);
      for (int t = 0; t < kRows; ++t) {
        const int32_t* offsets = tile.offsets[kBits] + 2 * (at + t);
        const int32_t offset = kParts == 2 ? offsets[part] : offsets[0] + offsets[1];
        const __m512 activation_scale = _mm512_set1_ps(tile.scales[at + t]);
        for (int q = 0; q < 4; ++q) {
          const __m512 row_scales =
              _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales + 32 * q)));
          totals[t][q] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum_of_quarter(sums[t], q, offset)),
                                         _mm512_mul_ps(row_scales, activation_scale), totals[t][q]);
        }
      }
    }
    for (int t = 0; t < kRows; ++t) {
      for (int q = 0; q < 4; ++q)
        _mm512_storeu_ps(out + t * out_stride + b * kBlockRows + 16 * q, totals[t][q]);
    }
  }
}

template <int kBits, int kTables, int kParts, int kRows>
void multiply_rows(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  constexpr auto kBySecondLevel = multiply_rows<kBits, kTables, kParts, kRows, false>;
  constexpr auto kIntoFirstLevel = multiply_rows<kBits, kTables, kParts, kRows, true>;
  (kStreamIntoFirstLevel ? kIntoFirstLevel : kBySecondLevel)(layout, weights, blocks, tile, out, out_stride);
}

template <int kBits, int kTables, int kParts>
void multiply_type(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  const auto run = [&](auto multiply) { multiply(layout, weights, blocks, tile, out, out_stride); };
  if constexpr (plane_rows(kBits) >= 3) {
    if (tile.rows == 3) return run(multiply_rows<kBits, kTables, kParts, 3>);
  }
  return tile.rows == 2 ? run(multiply_rows<kBits, kTables, kParts, 2>)
                        : run(multiply_rows<kBits, kTables, kParts, 1>);
}

}  // namespace

void build_planes(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  build_plane_tables(bits, quanta, tables, offsets);
}

void multiply_planes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                     int64_t out_stride) {
  const SignLayout layout = sign_layout(type);
  switch (type) {
    case DataType::kQ1_0:
      return multiply_type<1, 16, 1>(layout, weights, blocks, tile, out, out_stride);
    case DataType::kQ2_0:
      return multiply_type<2, 8, 2>(layout, weights, blocks, tile, out, out_stride);
    default:
      return multiply_type<2, 16, 1>(layout, weights, blocks, tile, out, out_stride);
  }
}

}  // namespace niwaki
