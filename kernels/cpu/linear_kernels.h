#pragma once
#include <cstddef>
#include <cstdint>

#include "niwaki/data_type.h"

namespace niwaki {

/// Activations are quantised in groups of this many columns; the last of a row may be shorter and counts as
/// zero padded.
constexpr int kGroupColumns = 128;
/// No quantised activation is larger, and no group's magnitudes sum to more: sums of signs fit int16.
constexpr int kMaxQuantum = 511;
constexpr int kMaxQuantumSum = 32767;

/// Packed sign weights come in blocks of 64 rows.
constexpr int kBlockRows = 64;
/// No tier multiplies more rows of a step together.
constexpr int kMaxTileRows = 32;

/// How a sign type lies in memory once packed. A block is 64 rows of one scale group: `byte_columns` bytes of
/// every row (8 weights of Q1_0 or 4 of Q2_0, as in the file), in an order that is the tier's own, then 64
/// float16 scales.
struct SignLayout {
  int bits;          // of a weight
  int columns;       // that share a scale
  int byte_columns;  // columns * bits / 8

  constexpr int block_bytes() const { return kBlockRows * (byte_columns + 2); }
};
constexpr SignLayout sign_layout(DataType type) {
  return type == DataType::kQ1_0   ? SignLayout{1, 128, 16}
         : type == DataType::kQ2_0 ? SignLayout{2, 64, 16}
                                   : SignLayout{2, 128, 32};
}
constexpr bool is_sign_type(DataType type) {
  return type == DataType::kQ1_0 || type == DataType::kQ2_0 || type == DataType::kQ2_0_G128;
}

/// The order of a block's bytes.
enum class SignOrder : uint8_t {
  /// Byte column 0 of all rows | byte column 1 | ... In each half of a column (32 rows), byte 2 i is row i,
  /// byte 2 i + 1 row 16 + i: as 16-bit lanes, the low bytes are 16 neighboring rows, and so are the high
  /// ones.
  kColumns,
  /// Byte columns 0 to 3 of row 0, of row 1, ... | byte columns 4 to 7 | ...
  kQuads
};
/// Where row `row` of a block stands in a byte column, in SignOrder::kColumns.
constexpr int sign_position(int row) {
  return (row & 32) + 2 * (row & 15) + (row >> 4 & 1);
}
/// Where byte `column` of a row of a block stands.
constexpr int sign_byte(SignOrder order, int row, int column) {
  return order == SignOrder::kQuads ? column / 4 * 4 * kBlockRows + 4 * row + column % 4
                                    : column * kBlockRows + sign_position(row);
}

/// Bytes of the tables of one group of activations, of 16 sums per four weight bits, two bytes each.
constexpr size_t nibble_table_bytes(int bits) {
  return static_cast<size_t>(kGroupColumns * bits / 4) * 32;
}
constexpr size_t nibble_table_bytes(int /*tile_rows*/, int bits) {
  return nibble_table_bytes(bits);
}

/// Blocks of rows that one call multiplies at most.
constexpr int kRunBlocks = 16;
constexpr int kRunRows = kRunBlocks * kBlockRows;
/// Floats of workspace for each of their rows and each lane.
constexpr int kLaneFloats = 3;

/// Quantised rows of a step: as look-up tables (of the bits that the matrix needs), or, of many rows, side by
/// side.
struct SignTile {
  int rows;  // 1 .. LinearKernels::tile_rows
  int64_t columns;
  int64_t groups;       // of kGroupColumns; the last may be shorter
  float* scales;        // [groups][rows]
  uint8_t* tables[3];   // by weight bits: [groups][rows][LinearKernels::table_bytes]
  int32_t* offsets[3];  // by weight bits: [groups][rows][2], of each half group: what its tables' sums are
                        // too large by, in a tier that needs it
  int16_t* lanes;       // null if the tile goes by tables; [groups][kGroupColumns][LinearKernels::tile_rows],
                        // in an order that is the tier's own; lanes beyond the last row are zero
};

/// The matrix kernels of a tier. A row of the step is computed in the same way whatever rows stand beside it.
struct LinearKernels {
  /// Of the weights of sign types.
  SignOrder sign_order;

  /// Quantises a group of `count` <= kGroupColumns activations: quanta = round to nearest even of x / scale,
  /// zero padded, at the smallest scale that keeps to kMaxQuantum and kMaxQuantumSum. Returns false if one is
  /// NaN or infinite.
  bool (*quantize)(const float* x, int count, int16_t* quanta, float* scale);

  /// Rows of a step that are multiplied together at most; if by lanes, as many as there are lanes.
  int tile_rows;

  /// Tiles of up to this many rows are multiplied by tables, larger ones by lanes.
  int table_rows;

  /// But by tables, too, where a call has fewer blocks of rows than this, as each builds its own for the
  /// lanes.
  int lane_blocks;

  /// Bytes of the tables of one group of activations, for weights of `bits` bits, of a row of a tile of
  /// `tile_rows`: a multiple of 64; what is in them is the tier's own.
  size_t (*table_bytes)(int tile_rows, int bits);

  /// The tables of one group for weights of `bits` bits, and its two offsets, of a row of a tile of
  /// `tile_rows`.
  void (*build_tables)(int tile_rows, int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets);

  /// The lanes of one group: quanta [tile_rows][kGroupColumns] transposed. Null if all tiles go by tables.
  void (*build_lanes)(const int16_t* quanta, int16_t* lanes);

  /// out[t][r] = row r of `blocks` <= kRunBlocks consecutive blocks of rows, times row t of the tile. Per
  /// scale group, ascending: out = fma(float(integer sum), row scale * activation scale, out). `workspace` is
  /// 64-byte aligned room for kLaneFloats floats for each of kRunRows rows and each lane, if there are lanes.
  void (*multiply_sign)(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                        float* out, int64_t out_stride, float* workspace);

  /// out[t][r] = row r of `rows` plain rows, times x[t]; `columns` is a multiple of 16. In 16 lanes, as
  /// tier.h says.
  void (*multiply_float)(DataType type, const uint8_t* weights, size_t row_stride, int64_t rows,
                         int64_t columns, const float* x, int64_t x_stride, int tile_rows, float* out,
                         int64_t out_stride);

  /// out = gate / (1 + exp(-gate)) * up; `count` is a multiple of 16. In place is fine.
  void (*swiglu)(const float* gate, const float* up, int64_t count, float* out);
};

extern const LinearKernels kPortableLinearKernels;
extern const LinearKernels kAvx2LinearKernels;
extern const LinearKernels kAvx512LinearKernels;
extern const LinearKernels kAvx512VbmiLinearKernels;
extern const LinearKernels kNeonLinearKernels;

}  // namespace niwaki
