#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/linear_kernels.h"
#include "niwaki/data_type.h"

namespace niwaki {

/// The left factor of a product: element (row, depth) is data[row * row_stride + depth * depth_stride], so
/// that a transposed matrix needs no copy.
struct Factor {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

/// Products add this many terms by fma, ascending, before the sum is added to the result.
constexpr int64_t kDepthRun = 128;
/// Rows of weights, or columns of them, that are dequantized together.
constexpr int64_t kPanelColumns = 64;

/// A block of 64 rows of packed weights: see CpuMatrix::Part.
struct WeightBlock {
  DataType type;
  SignOrder order;  // sign types only
  const uint8_t* data;
  size_t row_stride;  // bytes; float types only
  int64_t rows;       // that are there, 1 .. 64
};

/// What training computes beside the kernels of inference. All of it in float32, in the same order in every
/// tier: the results are equal to the bit. Rows are aligned to 16 floats.
struct TrainingKernels {
  /// y[row][column] = scale * sum over depth of x(row, depth) * panel[depth][column], or that added to y.
  /// `columns` is a multiple of 16. How rows and columns are cut into calls changes no bit.
  void (*multiply)(Factor x, const float* panel, int64_t panel_stride, int64_t rows, int64_t columns,
                   int64_t depth, float scale, bool accumulate, float* y, int64_t y_stride);

  /// out[row][column - first_column], exactly, of `columns` weights of each row; both are multiples of 16 and
  /// the range lies in one run of 64 columns.
  void (*dequantize)(const WeightBlock& block, int64_t first_column, int64_t columns, float* out);

  /// out[column - first_column][row] of up to 128 columns; rows that are not there are 0. Both out with 64
  /// floats from line to line.
  void (*dequantize_transposed)(const WeightBlock& block, int64_t first_column, int64_t columns, float* out);

  /// Of y = x / sqrt(mean(x^2) + eps) * weight: dx, or that added to dx. n is a multiple of 16.
  void (*rms_norm_backward)(const float* x, const float* weight, float eps, int64_t n, const float* dy,
                            bool accumulate, float* dx);

  /// Of RowKernels::norm_rope, x being the head before it. dx may be dy.
  void (*norm_rope_backward)(const float* x, const float* weight, float eps, const float* rope,
                             int32_t head_dim, const float* dy, float* dx);

  /// The first `count` scores become exp(scale * score) / sum, those up to `columns` 0.
  void (*softmax)(float* scores, int64_t count, int64_t columns, float scale);

  /// dy becomes scale * p * (dy - sum(p dy)), 0 where p is.
  void (*softmax_backward)(const float* p, int64_t columns, float scale, float* dy);

  /// Of y = silu(gate) * up; `count` is a multiple of 16.
  void (*swiglu_backward)(const float* gate, const float* up, const float* dy, int64_t count, float* dgate,
                          float* dup);
};

extern const TrainingKernels kPortableTrainingKernels;
extern const TrainingKernels kAvx2TrainingKernels;
extern const TrainingKernels kAvx512TrainingKernels;
extern const TrainingKernels kNeonTrainingKernels;

}  // namespace niwaki
