#pragma once
#include <cstdint>
#include <string>

#include "cpu/linear_kernels.h"
#include "cpu/weight_memory.h"
#include "niwaki/matrix.h"

namespace niwaki {

/// One source of a matrix, packed.
///
///   sign types:    [block of 64 rows][scale group][SignLayout], rows past the last padded with zero scales
///   float types:   [row][row_stride], rows as in the file
///
/// Rows of F32, F16 and BF16 are zero padded to a multiple of 16 columns.
struct Matrix::Part {
  std::string name;
  DataType type;
  int64_t rows;
  int64_t columns;
  size_t row_stride;  // bytes; float types only
  WeightMemory memory;

  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  /// Bytes from one block of 64 rows to the next.
  size_t block_stride() const;
  const uint8_t* block(int64_t index) const {
    return memory.data() + static_cast<size_t>(index) * block_stride();
  }
};

/// Float kernels work on 16 columns at a time.
inline int64_t padded_columns(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

}  // namespace niwaki
