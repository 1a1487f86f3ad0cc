#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/linear_kernels.h"
#include "niwaki/matrix.h"

namespace niwaki {

class ThreadPool;
class WeightArena;
class WeightMemory;

/// A matrix in the CPU's memory.
class CpuMatrix final : public Matrix {
 public:
  struct Part;  // one source, packed

  /// Repacks on the pool into memory of the arena, for a tier of this order; from inside a job. Throws
  /// kNonFinite naming the tensor if a weight or scale is NaN or infinite, kInvalidArgument as Matrix does,
  /// kOutOfMemory.
  static std::shared_ptr<const CpuMatrix> pack(std::span<const MatrixSource> sources, int64_t columns,
                                               SignOrder order, ThreadPool& pool, WeightArena& arena);
  ~CpuMatrix() override;

  const std::vector<Part>& parts() const { return parts_; }
  size_t bytes() const override;

 private:
  CpuMatrix(std::span<const MatrixSource> sources, int64_t columns);
  std::unique_ptr<const WeightMemory> memory_;  // of all parts
  std::vector<Part> parts_;
};

/// Throws kInvalidArgument for a matrix of another device.
const CpuMatrix& cpu_matrix(const Matrix& matrix);

/// One source of a matrix, packed.
///
///   sign types:    [block of 64 rows][scale group][SignLayout], rows past the last padded with zero scales
///   float types:   [row][row_stride], rows as in the file
///
/// Rows of F32, F16 and BF16 are zero padded to a multiple of 16 columns.
///
/// The parts of a matrix lie one after another in its memory, but for two of the same sign type with equal
/// rows: their blocks alternate, so that SwiGLU, which needs a row of both at once, reads one stream.
///
///   gate block 0 | up block 0 | gate block 1 | up block 1 | ...
struct CpuMatrix::Part {
  std::string name;
  DataType type;
  SignOrder order;  // sign types only: that of the tier it is packed for
  int64_t rows;
  int64_t columns;
  int64_t first_row;    // in the matrix
  size_t row_stride;    // bytes; float types only
  size_t block_stride;  // bytes from one block of 64 rows to the next
  uint8_t* data;        // the first block, in the matrix's memory

  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  size_t block_bytes() const;
  /// Whether the blocks of the other part lie between its own.
  bool alternates() const { return block_stride != block_bytes(); }
  const uint8_t* block(int64_t index) const { return data + static_cast<size_t>(index) * block_stride; }
};

/// Float kernels work on 16 columns at a time.
inline int64_t padded_columns(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

}  // namespace niwaki
