#pragma once
#include <cstddef>
#include <cstdint>

namespace niwaki {

/// Weight types as they lie in memory, row by row. All little-endian.
///
///   type       block  bytes  weight
///   kF32           1      4
///   kF16           1      2
///   kBF16          1      2
///   kQ8_0         32     34  f16 d, 32 int8;               w = d q
///   kQ4_0         32     18  f16 d, 16 bytes of nibbles;   w = d (q - 8), low nibbles are weights 0..15
///   kQ1_0        128     18  f16 d, 16 bytes of bits;      w = +d or -d, LSB first
///   kQ2_0         64     18  f16 d, 16 bytes of 2 bits;    w = d (code - 1), LSB first
///   kQ2_0_G128   128     34  f16 d, 32 bytes of 2 bits;    as kQ2_0
enum class DataType : int32_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ1_0, kQ2_0, kQ2_0_G128 };

struct DataTypeInfo {
  const char* name;     // "Q1_0"
  int32_t block;        // weights in a block; a row's length is a multiple of it
  int32_t block_bytes;  // bytes of a block
};

const DataTypeInfo& info(DataType type);

/// Bytes of one row of `columns` weights.
size_t row_bytes(DataType type, int64_t columns);

}  // namespace niwaki
