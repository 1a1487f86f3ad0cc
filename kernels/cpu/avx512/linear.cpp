// The matrix kernels with AVX-512: tables of 32 sums in a register (vpermw), 32 rows at a time. All but the
// fewest rows of the step (linear_planes.cpp, or linear_quads_vbmi.cpp with VBMI and VNNI) and full tiles
// (linear_lanes.cpp) go this way, as its cost grows with them and its indices are made once for all.
#define NIWAKI_SIMD_AVX512
#include "cpu/avx512/linear_lanes.h"
#include "cpu/avx512/linear_planes.h"
#include "cpu/avx512/linear_quads.h"
#include "cpu/linear_float.h"
#include "cpu/quantize.h"

namespace niwaki {
namespace {

// A pass is 64 weight bits of a row, eight byte columns of a block: twelve fields of five bits and one of
// four. A field has a table of 32 sums in int16, exactly one register; as the sum over a pass of two bits a
// weight (32 columns of at most 2 * 511), or over a group of one bit, fits int16, look-ups are simply added.
//
//   tables of a group:   pass 0: field 0, 32 x int16 | field 1 | ... | field 12     pass 1: ...
constexpr int kPassColumns = 8;
constexpr int kFields = 13;
constexpr int kFieldBits = 5;
constexpr int kTableBytes = 64;
constexpr int kPassBytes = kFields * kTableBytes;

/// Rows of the step that share each load of an index: their sums stay in registers.
constexpr int kShared = 4;
/// Rows of the step that are multiplied together.
constexpr int kTileRows = kLaneRows;
/// Lanes cost as much for one row as for all, as much as tables for some thirty.
constexpr int kTableRows = 30;
/// Their tables cost about as much as those of a block.
constexpr int kLaneBlocks = 8;
/// Rows whose tables of a group stay in the first-level cache from block to block, and tables of a pass and a
/// row that do.
constexpr int kCachedRows = 16;
constexpr int64_t kCachedPasses = 32;

/// What bit i of every field of a pass stands for, the fields side by side: lanes 2 f and 2 f + 1 are field
/// f.
template <int kBits>
struct FieldBit {
  alignas(64) int16_t column[32];  // of the pass
  alignas(64) int16_t shift[32];   // of its activation: what the bit adds, once set
  uint32_t used = 0, low = 0;      // lanes; low: without the bit the activation is subtracted

  constexpr explicit FieldBit(int i) : column{}, shift{} {
    for (int lane = 0; lane < 2 * kFields; ++lane) {
      const int bit = lane / 2 * kFieldBits + i;
      if (bit >= 64) continue;
      const bool is_low = kBits == 1 || bit % 2 == 0;
      column[lane] = static_cast<int16_t>(bit / kBits);
      shift[lane] = kBits == 1 || !is_low;
      used |= uint32_t{1} << lane;
      if (is_low) low |= uint32_t{1} << lane;
    }
  }
};

/// Of every field: the sums of what its bits choose. One bit a weight: -1 or +1 times the activation. Two:
/// code - 1 times it, so -q or 0 by the low bit and 0 or 2 q by the high one.
template <int kBits>
inline void build_type(const int16_t* quanta, uint8_t* tables) {
  static constexpr FieldBit<kBits> kBit[kFieldBits] = {
      FieldBit<kBits>(0), FieldBit<kBits>(1), FieldBit<kBits>(2), FieldBit<kBits>(3), FieldBit<kBits>(4)};
  // Bit i of an entry's number.
  constexpr __mmask32 kSet[kFieldBits] = {0xaaaaaaaa, 0xcccccccc, 0xf0f0f0f0, 0xff00ff00, 0xffff0000};
  for (int pass = 0; pass < 2 * kBits; ++pass) {
    const int16_t* q = quanta + pass * 64 / kBits;
    const __m512i first = _mm512_loadu_si512(q);
    const __m512i second = kBits == 1 ? _mm512_loadu_si512(q + 32) : first;
    alignas(64) int32_t changes[kFieldBits][16], clears[16];
    __m512i clear = _mm512_setzero_si512();
    for (int i = 0; i < kFieldBits; ++i) {
      const FieldBit<kBits>& bit = kBit[i];
      const __m512i value =
          _mm512_maskz_permutex2var_epi16(bit.used, first, _mm512_load_si512(bit.column), second);
      clear = _mm512_mask_sub_epi16(clear, bit.low, clear, value);
      _mm512_store_si512(changes[i], _mm512_sllv_epi16(value, _mm512_load_si512(bit.shift)));
    }
    _mm512_store_si512(clears, clear);
    for (int field = 0; field < kFields; ++field) {
      __m512i sums = _mm512_set1_epi32(clears[field]);
      for (int i = 0; i < kFieldBits; ++i)
        sums = _mm512_mask_add_epi16(sums, kSet[i], sums, _mm512_set1_epi32(changes[i][field]));
      _mm512_store_si512(tables, sums);
      tables += kTableBytes;
    }
  }
}

size_t many_table_bytes(int bits) {
  return static_cast<size_t>(2 * bits * kPassBytes);
}

void build_many(int bits, const int16_t* quanta, uint8_t* tables) {
  bits == 1 ? build_type<1>(quanta, tables) : build_type<2>(quanta, tables);
}

/// Of two registers of quads, the low words, or the high ones.
struct WordsOfQuads {
  alignas(64) int16_t word[2][32];
  constexpr WordsOfQuads() : word{} {
    for (int high = 0; high < 2; ++high) {
      for (int i = 0; i < 32; ++i) word[high][i] = static_cast<int16_t>(2 * i + high);
    }
  }
};
constexpr WordsOfQuads kWordsOfQuads;

/// The indices of a pass for the 64 rows of a block: of every field, those of rows 0-15 and 32-47, and those
/// of rows 16-31 and 48-63. vpermw reads the low five bits of each; what stands above is whatever it is.
template <SignOrder kOrder>
inline void build_indices(const uint8_t* bytes, __m512i* indices) {
  __m512i words[2][4];  // 16 bits of a row
  for (int p = 0; p < 4; ++p) {
    if constexpr (kOrder == SignOrder::kColumns) {
      const __m512i a = _mm512_load_si512(bytes + 2 * p * kBlockRows);
      const __m512i b = _mm512_load_si512(bytes + (2 * p + 1) * kBlockRows);
      constexpr __mmask64 kLowBytes = 0x5555555555555555;
      words[0][p] = _mm512_mask_blend_epi8(kLowBytes, _mm512_slli_epi16(b, 8), a);
      words[1][p] = _mm512_mask_blend_epi8(kLowBytes, b, _mm512_srli_epi16(a, 8));
    } else {
      // Of 16 rows and of the 16 that stand 32 after them, the low or the high words.
      const __m512i words_of = _mm512_load_si512(kWordsOfQuads.word[p % 2]);
      for (int half = 0; half < 2; ++half) {
        const uint8_t* quad = bytes + p / 2 * 4 * kBlockRows + half * 64;
        words[half][p] =
            _mm512_permutex2var_epi16(_mm512_load_si512(quad), words_of, _mm512_load_si512(quad + 128));
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 13
    for (int field = 0; field < kFields; ++field) {
      const int word = field * kFieldBits / 16, shift = field * kFieldBits % 16;
      __m512i index = _mm512_srli_epi16(words[half][word], static_cast<unsigned>(shift));
      if (shift > 16 - kFieldBits && word < 3)
        index = _mm512_or_si512(index,
                                _mm512_slli_epi16(words[half][word + 1], static_cast<unsigned>(16 - shift)));
      _mm512_store_si512(indices + 2 * field + half, index);
    }
  }
}

/// Makes the compiler hold a value in a register here. gcc 12 otherwise gathers the look-ups of all fields
/// before the first add, runs out of registers and keeps them in memory, or loads indices once a look-up.
inline void keep(__m512i& value) {
  asm("" : "+v"(value));
}

/// Adds the look-ups of one pass for kRows rows of the step.
template <int kRows>
inline void look_up(const __m512i* indices, const uint8_t* tables, size_t stride, __m512i (*sums)[2]) {
#pragma GCC unroll 13
  for (int field = 0; field < kFields; ++field) {
    __m512i first = _mm512_load_si512(indices + 2 * field);
    __m512i second = _mm512_load_si512(indices + 2 * field + 1);
    keep(first);
    keep(second);
    for (int t = 0; t < kRows; ++t) {
      __m512i table = _mm512_load_si512(tables + static_cast<size_t>(t) * stride + field * kTableBytes);
      keep(table);
      sums[t][0] = _mm512_add_epi16(sums[t][0], _mm512_permutexvar_epi16(first, table));
      sums[t][1] = _mm512_add_epi16(sums[t][1], _mm512_permutexvar_epi16(second, table));
      keep(sums[t][0]);
      keep(sums[t][1]);
    }
  }
}

/// out = fma(float(sum), scale of the row * scale of the activations, out), for 16 rows.
inline void add_scaled(__m512i sums, const float* scales, __m512 activation_scale, float* out) {
  const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales), activation_scale);
  _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, _mm512_loadu_ps(out)));
}

inline __m512i widen_low(__m512i v) {
  return _mm512_cvtepi16_epi32(_mm512_castsi512_si256(v));
}
inline __m512i widen_high(__m512i v) {
  return _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(v, 1));
}

/// One block times kRows rows of the step, whose tables are `stride` bytes apart and whose activations have
/// the scales `activation_scales`.
template <int kBits, int kPasses, int kRows>
inline void multiply_block(const __m512i* indices, const float* scales, const uint8_t* tables, size_t stride,
                           const float* activation_scales, float* out, int64_t out_stride) {
  __m512i wide[kRows][4];
  __m512i sums[kRows][2];
  for (int pass = 0; pass < kPasses; ++pass) {
    if (kBits == 2 || pass == 0) {
      for (int t = 0; t < kRows; ++t) sums[t][0] = sums[t][1] = _mm512_setzero_si512();
    }
    look_up<kRows>(indices + pass * 2 * kFields, tables + pass * kPassBytes, stride, sums);
    if (kBits == 2 || pass + 1 == kPasses) {
      for (int t = 0; t < kRows; ++t) {
        const __m512i parts[4] = {widen_low(sums[t][0]), widen_low(sums[t][1]), widen_high(sums[t][0]),
                                  widen_high(sums[t][1])};
        for (int i = 0; i < 4; ++i)
          wide[t][i] = kBits == 1 || pass == 0 ? parts[i] : _mm512_add_epi32(wide[t][i], parts[i]);
      }
    }
  }
  for (int t = 0; t < kRows; ++t) {
    for (int i = 0; i < 4; ++i) {
      add_scaled(wide[t][i], scales + 16 * i, _mm512_set1_ps(activation_scales[t]),
                 out + t * out_stride + 16 * i);
    }
  }
}

/// Blocks that are asked for ahead of their use, in the order of use.
constexpr int64_t kAheadBlocks = 2;

/// `kPasses` passes are a scale group, of which a group of activations has `kParts`.
///
/// So many scale groups are a panel that the tables of all rows, and what a block needs, stay in the
/// first-level cache while the blocks go by; of a block, a panel is one piece of memory.
template <SignOrder kOrder, int kBits, int kPasses, int kParts>
void multiply_type(const SignLayout layout, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                   float* out, int64_t out_stride) {
  const int64_t scale_groups = tile.columns / layout.columns;
  const int64_t block_stride = scale_groups * layout.block_bytes();
  constexpr size_t kStride = size_t{2} * kBits * kPassBytes;
  const int64_t chunk = tile.rows < kCachedRows ? tile.rows : kCachedRows;
  const int64_t panel = kCachedPasses / (kPasses * chunk) > 1 ? kCachedPasses / (kPasses * chunk) : 1;
  alignas(64) __m512i indices[kPasses * 2 * kFields];
  alignas(64) float scales[kBlockRows];
  for (int t = 0; t < tile.rows; ++t) {
    for (int64_t i = 0; i < blocks * kBlockRows; ++i) out[t * out_stride + i] = 0.0f;
  }
  for (int64_t first = 0; first < scale_groups; first += panel) {
    const int64_t groups = scale_groups - first < panel ? scale_groups - first : panel;
    for (int begin = 0; begin < tile.rows; begin += kCachedRows) {
      const int end = tile.rows - begin < kCachedRows ? tile.rows : begin + kCachedRows;
      for (int64_t i = 0; i < blocks * groups; ++i) {
        const int64_t b = i / groups, g = first + i % groups;
        const uint8_t* block = weights + b * block_stride + g * layout.block_bytes();
        if (begin == 0) {
          // Past the end of a matrix nothing is harmed.
          const int64_t next = i + kAheadBlocks;
          const uint8_t* ahead =
              next < blocks * groups
                  ? weights + next / groups * block_stride + (first + next % groups) * layout.block_bytes()
                  : weights + (first + groups + next - blocks * groups) * layout.block_bytes();
          for (int line = 0; line < layout.block_bytes(); line += 64)
            _mm_prefetch(reinterpret_cast<const char*>(ahead + line), _MM_HINT_T0);
        }
        for (int pass = 0; pass < kPasses; ++pass)
          build_indices<kOrder>(block + pass * kPassColumns * kBlockRows, indices + pass * 2 * kFields);
        for (int r = 0; r < kBlockRows; r += kLanes) {
          const uint8_t* halves = block + layout.byte_columns * kBlockRows + 2 * r;
          F32x16::load_f16(reinterpret_cast<const uint16_t*>(halves)).store(scales + r);
        }
        const int64_t at = g / kParts * tile.rows;
        const uint8_t* tables = tile.tables[kBits] + static_cast<size_t>(at) * kStride +
                                static_cast<size_t>(g % kParts * kPasses) * kPassBytes;
        const auto multiply = [&](auto block_kernel, int t) {
          block_kernel(indices, scales, tables + static_cast<size_t>(t) * kStride, kStride,
                       tile.scales + at + t, out + t * out_stride + b * kBlockRows, out_stride);
        };
        int t = begin;
        for (; t + kShared <= end; t += kShared) multiply(multiply_block<kBits, kPasses, kShared>, t);
        switch (end - t) {
          case 3:
            multiply(multiply_block<kBits, kPasses, 3>, t);
            break;
          case 2:
            multiply(multiply_block<kBits, kPasses, 2>, t);
            break;
          case 1:
            multiply(multiply_block<kBits, kPasses, 1>, t);
            break;
        }
      }
    }
  }
}

template <SignOrder kOrder>
void multiply_many(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* workspace) {
  if (tile.lanes != nullptr)
    return multiply_avx512_lanes(type, kOrder, weights, blocks, tile, out, out_stride, workspace);
  const SignLayout layout = sign_layout(type);
  switch (type) {
    case DataType::kQ1_0:
      return multiply_type<kOrder, 1, 2, 1>(layout, weights, blocks, tile, out, out_stride);
    case DataType::kQ2_0:
      return multiply_type<kOrder, 2, 2, 2>(layout, weights, blocks, tile, out, out_stride);
    default:
      return multiply_type<kOrder, 2, 4, 1>(layout, weights, blocks, tile, out, out_stride);
  }
}

size_t table_bytes(int tile_rows, int bits) {
  return tile_rows <= plane_rows(bits) ? kPlaneTableBytes : many_table_bytes(bits);
}

void build_tables(int tile_rows, int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  if (tile_rows <= plane_rows(bits)) return build_planes(bits, quanta, tables, offsets);
  build_many(bits, quanta, tables);
}

void multiply_sign(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride, float* workspace) {
  if (tile.rows <= plane_rows(sign_layout(type).bits))
    return multiply_planes(type, weights, blocks, tile, out, out_stride);
  multiply_many<SignOrder::kColumns>(type, weights, blocks, tile, out, out_stride, workspace);
}

size_t table_bytes_vbmi(int tile_rows, int bits) {
  return tile_rows <= kQuadRows ? quad_table_bytes(bits) : many_table_bytes(bits);
}

void build_tables_vbmi(int tile_rows, int bits, const int16_t* quanta, uint8_t* tables,
                       int32_t* /*offsets*/) {
  tile_rows <= kQuadRows ? build_quads(bits, quanta, tables) : build_many(bits, quanta, tables);
}

void multiply_sign_vbmi(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                        float* out, int64_t out_stride, float* workspace) {
  if (tile.rows <= kQuadRows) return multiply_quads(type, weights, blocks, tile, out, out_stride);
  multiply_many<SignOrder::kQuads>(type, weights, blocks, tile, out, out_stride, workspace);
}

}  // namespace

const LinearKernels kAvx512LinearKernels = {
    SignOrder::kColumns, quantize_group,     kTileRows,     kTableRows,          kLaneBlocks, table_bytes,
    build_tables,        build_avx512_lanes, multiply_sign, multiply_float_rows, swiglu_rows};

const LinearKernels kAvx512VbmiLinearKernels = {SignOrder::kQuads,   quantize_group,     kTileRows,
                                                kTableRows,          kLaneBlocks,        table_bytes_vbmi,
                                                build_tables_vbmi,   build_avx512_lanes, multiply_sign_vbmi,
                                                multiply_float_rows, swiglu_rows};

}  // namespace niwaki
