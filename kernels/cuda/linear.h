#pragma once
#include "cuda/matrix.h"
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
  return rows > kPlaneRows ? QuantizedLayout::kHalves : bits == 1 ? QuantizedLayout::kBits1 : QuantizedLayout::kBits2;
}

/// What an RMS norm multiplies by: [width] in device memory, or null.
struct NormWeights {
  const float* weights;
  float eps;
};

/// A norm, and what is named where its row, or the normed one, is not finite.
struct RowNorm {
  NormWeights norm;
  int32_t norm_op, op;
  bool outputs;  // rows of the outputs, else of the step
};

/// y = W x for a run of a sign type; per slice, ascending: y = fma(float(exact sum), weight scale * activation scale, y), as on the
/// CPU.
struct SignProduct {
  const MatrixRun* run;
  int32_t rows;  // as launched; there is room for so many in all that follows, and more than kPlaneRows are a multiple of 16
  Quantized in;
  FloatRows out;
  Epilogue epilogue;
  /// One row that is normed and quantized on the way (takes_norm); `in` is not read then.
  FloatRows normed{};
  RowNorm norm{};
  /// What SwiGLU gives (quantizes_swiglu) is also stored as integers for the next operation, if its data is not null.
  Quantized next{};
  int32_t next_op = 0;
};
/// Whether a product can norm its row, and whether it can quantize what SwiGLU gives.
bool takes_norm(const MatrixRun& run, int rows);
bool quantizes_swiglu(const MatrixRun& run, int rows);

void multiply_sign(const StepView& step, const SignProduct& product, int multiprocessors, cudaStream_t stream);

/// The same for a run of a float type and rows of floats; kStore and kAdd only. A row's sum is over lanes of a warp, columns
/// ascending, then a tree.
void multiply_floats(const MatrixRun& run, const FloatRows& in, int rows, const FloatRows& out, Epilogue epilogue,
                     cudaStream_t stream);

}  // namespace niwaki::cuda
