#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "niwaki/data_type.h"

namespace niwaki {

class ThreadPool;
class WeightArena;
class WeightMemory;

/// Rows of one tensor, as they lie in a file.
struct MatrixSource {
  std::string name;  // for errors: "blk.3.attn_q.weight"
  DataType type;
  int64_t rows;
  const uint8_t* data;  // rows * row_bytes(type, columns) bytes
};

/// A weight matrix, repacked for the kernels. Several tensors stacked by rows make one matrix (Q | K | V,
/// gate | up), and each keeps its own type; nothing is ever expanded to float.
class Matrix {
 public:
  struct Part;  // one source, packed; defined by the CPU kernels

  /// Repacks on the pool into memory of the arena; from inside a job. Throws kNonFinite naming the tensor if
  /// a weight or scale is NaN or infinite, kInvalidArgument for a row length that is not a multiple of the
  /// type's block, kOutOfMemory.
  static std::shared_ptr<const Matrix> pack(std::span<const MatrixSource> sources, int64_t columns,
                                            ThreadPool& pool, WeightArena& arena);
  ~Matrix();
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  const std::vector<Part>& parts() const { return parts_; }
  /// Bytes that the packed weights occupy.
  size_t bytes() const;

 private:
  Matrix();
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  std::unique_ptr<const WeightMemory> memory_;  // of all parts
  std::vector<Part> parts_;
};

/// A float32 vector of weights (a norm). Throws kNonFinite as above.
class Vector {
 public:
  Vector(const std::string& name, std::span<const float> values);
  std::span<const float> values() const { return values_; }

 private:
  std::vector<float> values_;
};

}  // namespace niwaki
