// Q1_0 times two to five rows of a step with AVX-512 VBMI: 64-entry tables of bytes (vpermb), so six columns
// a look-up where linear_planes.cpp has four, for 64 rows at a time. It takes two thirds of the instructions.
// One row has no use for it: it waits for memory, which gives less when blocks are read side by side as they
// are here.
//
// A weight bit chooses 0 or 1 times its column's activation, as in planes.h, and S, the sum of what six bits
// choose, is made non-negative and split in two planes of bytes: at most 6 * 511 = 3066, seven bits low and
// five bits high. As all magnitudes of a group sum to at most 32,767, the high planes of a whole group sum to
// at most 255: they fit a byte and are never drained. Two low planes fit a byte.
//
// A unit is eight bytes A .. H of a row, 64 columns, cut in eleven fields. vpermb reads the low six bits of
// each index, so the first six bits of a byte are a field as they lie:
//
//   A   B   C   A >> 6, B >> 6, C >> 6   |   D   E   F   D >> 6, E >> 6, F >> 6   |   G   H   G >> 6, H >> 6
//
//   tables of a unit:   field 0: low plane, 64 bytes | high plane, 64 bytes | field 1: ...
#include "cpu/avx512/linear_vbmi.h"

#include <immintrin.h>

namespace niwaki {
namespace {

constexpr int kUnits = 2;  // of a group
constexpr int kUnitColumns = kGroupColumns / kUnits;
constexpr int kUnitBytes = 8;
constexpr int kFields = 11;
constexpr int kFieldBits = 6;
constexpr int kTableBytes = 128;
constexpr int kUnitTableBytes = kFields * kTableBytes;
constexpr int kLowBits = 7;
static_assert(kUnits * kUnitTableBytes == kVbmiTableBytes);

/// Blocks of rows that share each load of a group's tables.
constexpr int64_t kTogether = 4;
/// How many groups ahead of its use a group of a block is asked for into the second-level cache, twice, as a
/// request that finds no room is dropped: the first one is busy with the tables, and is asked for what comes
/// next alone.
constexpr int64_t kFarGroups = 4, kNearGroups = 2;

/// Which column of a unit bit i of every field stands for, the fields side by side: lanes 2 f and 2 f + 1 are
/// field f.
struct FieldBit {
  alignas(64) int16_t column[32];
  uint32_t used = 0;  // lanes

  constexpr explicit FieldBit(int i) : column{} {
    for (int lane = 0; lane < 2 * kFields; ++lane) {
      const int part = lane / 2 / 4, field = lane / 2 % 4, bytes = part < 2 ? 3 : 2;
      const bool rest = field == bytes;  // of the bits 6 and 7 of the bytes before it
      if (rest && i >= 2 * bytes) continue;
      const int byte = 3 * part + (rest ? i / 2 : field), bit = rest ? 6 + i % 2 : i;
      column[lane] = static_cast<int16_t>(8 * byte + bit);
      used |= uint32_t{1} << lane;
    }
  }
};

/// Makes the compiler hold a value in a register here. gcc 12 otherwise gathers the loads of many look-ups
/// before the first add, runs out of registers and keeps the sums in memory.
inline void keep(__m512i& value) {
  asm("" : "+v"(value));
}

inline __m512i load(const uint8_t* p) {
  return _mm512_load_si512(p);
}

/// mask ? x : y, bit by bit.
inline __m512i select(int8_t mask, __m512i x, __m512i y) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), x, y, 0xca);
}

/// Sums of look-ups. As 16-bit lanes a vector of bytes is even + 256 odd: `all` adds just that, modulo 2^16,
/// `odd` adds it shifted right by 8, and even = all - 256 odd. Nothing is unpacked.
struct Sums {
  __m512i all, odd;  // of low planes
  __m512i high;      // bytes
};

/// Two fields for all rows of the step; `first` and `second` are their indices.
template <int kRows, bool kSecond = true>
inline void look_up(__m512i first, __m512i second, const uint8_t* tables, Sums (&sums)[kRows]) {
  for (int t = 0; t < kRows; ++t) {
    const uint8_t* table = tables + static_cast<size_t>(t) * kVbmiTableBytes;
    __m512i low = _mm512_permutexvar_epi8(first, load(table));
    sums[t].high = _mm512_add_epi8(sums[t].high, _mm512_permutexvar_epi8(first, load(table + 64)));
    if constexpr (kSecond) {
      low = _mm512_add_epi8(low, _mm512_permutexvar_epi8(second, load(table + kTableBytes)));
      sums[t].high =
          _mm512_add_epi8(sums[t].high, _mm512_permutexvar_epi8(second, load(table + kTableBytes + 64)));
    }
    sums[t].all = _mm512_add_epi16(sums[t].all, low);
    sums[t].odd = _mm512_add_epi16(sums[t].odd, _mm512_srli_epi16(low, 8));
    keep(sums[t].high);
    keep(sums[t].all);
    keep(sums[t].odd);
  }
}

/// What is asked for while a block of a group is multiplied, as many lines of it as of the block.
struct Ahead {
  const uint8_t *far, *near, *next;

  __attribute__((always_inline)) void ask(int begin, int end) const {
    for (int i = begin * kBlockRows; i < end * kBlockRows; i += kBlockRows) {
      _mm_prefetch(reinterpret_cast<const char*>(far + i), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(near + i), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T0);
    }
  }
};

template <int kRows>
inline void look_up_unit(const uint8_t* bytes, const uint8_t* tables, const Ahead& ahead, int line,
                         Sums (&sums)[kRows]) {
#pragma GCC unroll 2
  for (int part = 0; part < 2; ++part, bytes += 3 * kBlockRows, tables += 4 * kTableBytes, line += 3) {
    __m512i a = load(bytes), b = load(bytes + kBlockRows), c = load(bytes + 2 * kBlockRows);
    keep(a);
    keep(b);
    keep(c);
    const __m512i rest =
        select(0x0f, select(0x03, _mm512_srli_epi16(a, 6), _mm512_srli_epi16(b, 4)), _mm512_srli_epi16(c, 2));
    ahead.ask(line, line + 2);
    look_up(a, b, tables, sums);
    ahead.ask(line + 2, line + 3);
    look_up(c, rest, tables + 2 * kTableBytes, sums);
  }
  __m512i a = load(bytes), b = load(bytes + kBlockRows);
  keep(a);
  keep(b);
  ahead.ask(line, line + 2);
  look_up(a, b, tables, sums);
  // Bits 4 and 5 are whatever they are: no column stands behind them.
  const __m512i rest = select(0x03, _mm512_srli_epi16(a, 6), _mm512_srli_epi16(b, 4));
  look_up<kRows, false>(rest, rest, tables + 2 * kTableBytes, sums);
}

/// Unsigned 16-bit lanes: rows 0-15 and 32-47, and rows 16-31 and 48-63.
struct Split {
  __m512i even, odd;
};
inline Split split(const Sums& sums) {
  const __m512i all = _mm512_add_epi16(sums.all, _mm512_slli_epi16(sums.high, kLowBits));
  const __m512i odd =
      _mm512_add_epi16(sums.odd, _mm512_slli_epi16(_mm512_srli_epi16(sums.high, 8), kLowBits));
  return {_mm512_sub_epi16(all, _mm512_slli_epi16(odd, 8)), odd};
}

/// Rows 16 q .. 16 q + 15 of the block.
inline __m256i quarter(const Split& s, int q) {
  const __m512i v = q % 2 == 0 ? s.even : s.odd;
  return q < 2 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
}

/// One block of a group times kRows rows of the step, added to `out`.
template <int kRows>
inline void multiply_block(const uint8_t* block, const uint8_t* tables, const int32_t* offsets,
                           const float* activation_scales, const Ahead& ahead, bool first, float* out,
                           int64_t out_stride) {
  Sums sums[kRows];
  for (int t = 0; t < kRows; ++t) sums[t].all = sums[t].odd = sums[t].high = _mm512_setzero_si512();
#pragma GCC unroll 1
  for (int unit = 0; unit < kUnits; ++unit) {
    look_up_unit(block + unit * kUnitBytes * kBlockRows, tables + unit * kUnitTableBytes, ahead,
                 unit * kUnitBytes, sums);
  }
  ahead.ask(kUnits * kUnitBytes, kUnits * kUnitBytes + 2);
  const uint8_t* scales = block + kUnits * kUnitBytes * kBlockRows;
  for (int t = 0; t < kRows; ++t) {
    const Split rows = split(sums[t]);
    const auto offset = _mm256_set1_epi16(static_cast<int16_t>(offsets[2 * t] + offsets[2 * t + 1]));
    const __m512 activation_scale = _mm512_set1_ps(activation_scales[t]);
    for (int q = 0; q < 4; ++q) {
      // Twice a sum wraps, and what is left after the offset is again within int16.
      const __m256i s = quarter(rows, q);
      const __m512i sum = _mm512_cvtepi16_epi32(_mm256_sub_epi16(_mm256_add_epi16(s, s), offset));
      const __m512 row_scales =
          _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales + 32 * q)));
      float* to = out + t * out_stride + 16 * q;
      const __m512 before = first ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
      _mm512_storeu_ps(
          to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(row_scales, activation_scale), before));
    }
  }
}

template <int kRows>
void multiply_rows(const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride) {
  const int64_t block_bytes = sign_layout(DataType::kQ1_0).block_bytes(),
                block_stride = tile.groups * block_bytes;
  for (int64_t begin = 0; begin < blocks; begin += kTogether) {
    const int64_t count = blocks - begin < kTogether ? blocks - begin : kTogether;
    const uint8_t* first = weights + begin * block_stride;
    for (int64_t g = 0; g < tile.groups; ++g) {
      for (int64_t b = 0; b < count; ++b) {
        const uint8_t* block = first + b * block_stride + g * block_bytes;
        // At the end of these blocks the next ones follow; past the end of a matrix nothing is harmed.
        const auto groups_on = [&](int64_t groups) {
          return block + groups * block_bytes + (g + groups < tile.groups ? 0 : (count - 1) * block_stride);
        };
        const uint8_t* next = b + 1 < count ? block + block_stride : block - b * block_stride + block_bytes;
        multiply_block<kRows>(block, tile.tables[1] + static_cast<size_t>(g * kRows) * kVbmiTableBytes,
                              tile.offsets[1] + 2 * g * kRows, tile.scales + g * kRows,
                              {groups_on(kFarGroups), groups_on(kNearGroups), next}, g == 0,
                              out + (begin + b) * kBlockRows, out_stride);
      }
    }
  }
}

}  // namespace

void build_vbmi(const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  static constexpr FieldBit kBit[kFieldBits] = {FieldBit(0), FieldBit(1), FieldBit(2),
                                                FieldBit(3), FieldBit(4), FieldBit(5)};
  const __m512i zero = _mm512_setzero_si512(), low_bits = _mm512_set1_epi16((1 << kLowBits) - 1);
  for (int unit = 0; unit < kUnits; ++unit, quanta += kUnitColumns) {
    const __m512i first = _mm512_loadu_si512(quanta), second = _mm512_loadu_si512(quanta + 32);
    alignas(64) int32_t sets[kFieldBits][16], clears[16];  // what a set bit adds; what all sums begin with
    __m512i clear = zero;
    for (int i = 0; i < kFieldBits; ++i) {
      const __m512i q =
          _mm512_maskz_permutex2var_epi16(kBit[i].used, first, _mm512_load_si512(kBit[i].column), second);
      _mm512_store_si512(sets[i], q);
      clear = _mm512_add_epi16(clear, _mm512_max_epi16(_mm512_sub_epi16(zero, q), zero));
    }
    _mm512_store_si512(clears, clear);
    for (int field = 0; field < kFields; ++field) {
      // Packing puts eight words of one register beside eight of another: entries whose bit 3 is clear, and
      // those where it is set.
      constexpr int kBitOfWord[5] = {0, 1, 2, 4, 5};
      constexpr __mmask32 kSet[5] = {0xaaaaaaaa, 0xcccccccc, 0xf0f0f0f0, 0xff00ff00, 0xffff0000};
      __m512i a = _mm512_set1_epi32(clears[field]);
      for (int i = 0; i < 5; ++i)
        a = _mm512_mask_add_epi16(a, kSet[i], a, _mm512_set1_epi32(sets[kBitOfWord[i]][field]));
      const __m512i b = _mm512_add_epi16(a, _mm512_set1_epi32(sets[3][field]));
      _mm512_store_si512(tables,
                         _mm512_packus_epi16(_mm512_and_si512(a, low_bits), _mm512_and_si512(b, low_bits)));
      _mm512_store_si512(tables + 64,
                         _mm512_packus_epi16(_mm512_srli_epi16(a, kLowBits), _mm512_srli_epi16(b, kLowBits)));
      tables += kTableBytes;
    }
    // The sum of weights times activations is 2 S less that of the magnitudes.
    const __m512i magnitudes = _mm512_add_epi16(_mm512_abs_epi16(first), _mm512_abs_epi16(second));
    offsets[unit] = _mm512_reduce_add_epi32(_mm512_madd_epi16(magnitudes, _mm512_set1_epi16(1)));
  }
}

void multiply_vbmi(const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride) {
  constexpr decltype(&multiply_rows<2>) kByRows[] = {multiply_rows<2>, multiply_rows<3>, multiply_rows<4>,
                                                     multiply_rows<5>};
  kByRows[tile.rows - 2](weights, blocks, tile, out, out_stride);
}

}  // namespace niwaki
