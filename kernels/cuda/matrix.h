#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda/memory.h"
#include "niwaki/matrix.h"

namespace niwaki {
class ThreadPool;
}

namespace niwaki::cuda {

/// Sign weights as matrix instructions take them, in tiles of 16 rows. A slice is 128 columns of Q1_0, or 64
/// of Q2_0, with one scale for each row; a unit is two slices of a tile. Units lie as unit_index says:
///
///   words   [unit][lane], four each: of rows lane / 4 and lane / 4 + 8 in the first slice, then in the
///   second;
///
///   scales  [unit][8], four float16 each: of rows i and i + 8 in the first slice, then in the second
///
/// A word is number lane % 4 of the slice's columns: Q1_0 as in Quantized (kBits1), Q2_0 as in the file.
/// Tiles are a multiple of eight. Rows beyond the last, and a slice beyond the last, are zeros with scales of
/// zero. Q2_0 with groups of 128 has its scales twice.
struct SignWeights {
  int32_t bits;          // of a weight
  int32_t tiles, units;  // units of a tile
  const uint4* words;
  const uint2* scales;

  /// Those of eight tiles beside each other, so that whoever takes a unit of several tiles reads a stretch.
  __host__ __device__ size_t unit_index(int64_t tile, int64_t unit) const {
    return static_cast<size_t>((tile / 8 * units + unit) * 8 + tile % 8);
  }
};

/// A stretch of rows of one kind.
struct MatrixRun {
  DataType type;
  int64_t first_row, rows, columns;
  /// Two tensors of equal rows: rows 0..7 of a tile are of the first, 8..15 of the second, so that SwiGLU has
  /// both at hand.
  bool interleaved;
  SignWeights sign;     // of a sign type
  const uint8_t* data;  // else: rows as in the file, row_bytes apart
};

class CudaMatrix final : public Matrix {
 public:
  /// Repacks on the pool and uploads; from inside a job of the pool. Throws kNonFinite, kInvalidArgument,
  /// kOutOfMemory as the CPU's does.
  static std::shared_ptr<const CudaMatrix> pack(std::span<const MatrixSource> sources, int64_t columns,
                                                ThreadPool& pool);

  size_t bytes() const override { return bytes_; }
  const std::vector<MatrixRun>& runs() const { return runs_; }

 private:
  using Matrix::Matrix;
  void pack_sign(std::span<const MatrixSource> sources, int64_t first_row, bool interleaved,
                 ThreadPool& pool);
  void upload_floats(const MatrixSource& source, int64_t first_row, ThreadPool& pool);

  std::vector<MatrixRun> runs_;
  std::vector<DeviceMemory> memory_;
  size_t bytes_ = 0;
};

/// Throws kInvalidArgument for a matrix of another device.
const CudaMatrix& cuda_matrix(const Matrix& matrix);

}  // namespace niwaki::cuda
