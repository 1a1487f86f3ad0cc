#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "niwaki/data_type.h"

namespace niwaki {

/// Rows of one tensor, as they lie in a file.
struct MatrixSource {
  std::string name;  // for errors: "blk.3.attn_q.weight"
  DataType type;
  int64_t rows;
  const uint8_t* data;  // rows * row_bytes(type, columns) bytes
};

/// A weight matrix, repacked for the kernels of the device that loaded it. Several tensors stacked by rows
/// make one matrix (Q | K | V, gate | up), and each keeps its own type; nothing is ever expanded to float.
class Matrix {
 public:
  struct Tensor {
    std::string name;
    DataType type;
    int64_t rows;
  };
  /// Throws kInvalidArgument for a matrix without rows or columns, or with rows that are not a multiple of
  /// the type's block.
  Matrix(std::span<const MatrixSource> sources, int64_t columns);
  virtual ~Matrix() = default;
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  /// Bytes that the packed weights occupy.
  virtual size_t bytes() const = 0;

 private:
  int64_t rows_ = 0;
  int64_t columns_;
  std::vector<Tensor> tensors_;
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
