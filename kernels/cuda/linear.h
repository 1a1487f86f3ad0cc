#pragma once
#include "cuda/matrix.h"
#include "cuda/norm.h"
#include "cuda/quantize.h"
#include "cuda/step_view.h"

namespace niwaki::cuda {

/// What becomes of y = W x.
enum class Epilogue : int32_t {
  kStore,   // out = y
  kAdd,     // out += y
  kSwiglu,  // out = silu(y of the first tensor) * y of the second, of an interleaved run
};

/// Rows of floats, `stride` floats apart.
struct FloatRows {
  float* data;
  int64_t stride;
};

/// Up to so many rows are multiplied bit plane by bit plane, more by wgmma. The results have the same bits.
constexpr int kPlaneRows = 8;

/// The layout that quantized rows must have for these weights; `rows` as launched.
inline QuantizedLayout quantized_layout(int bits, int rows) {
  return rows > kPlaneRows ? QuantizedLayout::kHalves
         : bits == 1       ? QuantizedLayout::kBits1
                           : QuantizedLayout::kBits2;
}

/// y = W x for a run of a sign type; per slice, ascending: y = fma(float(exact sum), weight scale *
/// activation scale, y), as on the CPU.
struct SignProduct {
  const MatrixRun* run;
  int32_t rows;  // as launched; there is room for so many in all that follows, and more than kPlaneRows are a
                 // multiple of 16
  Quantized in;
  FloatRows out;
  Epilogue epilogue;
};
void multiply_sign(const SignProduct& product, int multiprocessors, cudaStream_t stream);

/// The same for one row, which may be a row of up to kMostRowFloats floats that is normed and quantized on
/// the way, with the bits that prepare_rows gives.
constexpr int64_t kMostRowFloats = 16384;
struct RowProduct {
  const MatrixRun* run;
  const float* x;       // null: the row is `in`
  NormWeights norm;     // of x; weights null: none
  int32_t norm_op, op;  // named where squares of x, or x, are not finite
  Quantized in;
  FloatRows out;  // data null, with `next`: not wanted
  Epilogue epilogue;
  /// With kSwiglu and data that is not null: the results, whole groups of a run of whole groups, as the
  /// operation `next_op` takes them.
  Quantized next;
  int32_t next_op;
};
void multiply_row(const StepView& step, const RowProduct& product, int multiprocessors, cudaStream_t stream);

/// The same for a run of a float type and rows of floats; kStore and kAdd only. A row's sum is over lanes of
/// a warp, columns ascending, then a tree.
void multiply_floats(const MatrixRun& run, const FloatRows& in, int rows, const FloatRows& out,
                     Epilogue epilogue, cudaStream_t stream);

}  // namespace niwaki::cuda
