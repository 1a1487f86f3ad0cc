#pragma once
#include "cuda/linear.h"
#include "cuda/matrix.h"
#include "cuda/norm.h"
#include "cuda/quantize.h"
#include "cuda/step_view.h"

namespace niwaki::cuda {

/// Whose rows an operation goes through, and how it is named in StepView::first_bad.
struct RowsOf {
  int32_t op;
  bool outputs;  // rows of the outputs, else of the step
};

/// out[row] = table[token of row], exactly.
void embed(const StepView& step, const CudaMatrix& table, const FloatRows& out, int rows,
           cudaStream_t stream);

/// Rows of x, normed if `norm` is given, to `out` (floats, unless its data is null) and to each of
/// `quantized`. x of a width that is a multiple of 16. What is quantized is x times the norm's weights; the
/// factor that all of a row share goes into the scales (quantize_lanes). A row's bits do not depend on the
/// others, nor on where they go. Values that are not finite are reported: those of a norm as `norm_op`, those
/// that cannot be quantized as `of.op`.
struct Preparation {
  FloatRows in;
  int32_t width;
  NormWeights norm;  // weights null: none
  int32_t norm_op;
  FloatRows out;
  int32_t layouts;  // of quantized
  Quantized quantized[2];
  RowsOf of;
};
void prepare_rows(const StepView& step, const Preparation& work, int rows, cudaStream_t stream);

/// out = silu(gate) * up, or out += with `accumulate`; x is gate | up.
void swiglu(const FloatRows& x, int32_t width, const FloatRows& out, bool accumulate, int rows,
            cudaStream_t stream);

/// out = in
void copy_rows(const FloatRows& in, int32_t width, const FloatRows& out, int rows, cudaStream_t stream);

/// Rows of a matrix as floats, [rows][columns], on the host.
std::vector<float> read_rows(const CudaMatrix& matrix, int64_t first_row, int64_t rows, cudaStream_t stream);

/// out[i] = in[row of output i]
void select_outputs(const StepView& step, const FloatRows& in, const FloatRows& out, int32_t width,
                    int outputs, cudaStream_t stream);

}  // namespace niwaki::cuda
