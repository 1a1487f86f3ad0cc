#include "cuda/linear.h"
#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kFloatRows = 8;  // rows of the step that a warp multiplies together
constexpr int kWarps = 8;

template <DataType T, Epilogue E>
__global__ void multiply_float_rows(MatrixRun run, int64_t row_size, FloatRows in, int rows, FloatRows out) {
  start_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= run.rows) return;
  const uint8_t* weights = run.data + row * row_size;
  const int first = static_cast<int>(blockIdx.y) * kFloatRows, count = min(kFloatRows, rows - first);
  float sum[kFloatRows]{};
  for (int64_t c = lane; c < run.columns; c += 32) {
    const float weight = float_at<T>(weights, c);
#pragma unroll
    for (int i = 0; i < kFloatRows; ++i) {
      if (i < count) sum[i] = __fmaf_rn(weight, __ldcg(in.data + (first + i) * in.stride + c), sum[i]);
    }
  }
  for (int i = 0; i < count; ++i) {
    const float total = warp_sum(sum[i]);
    float* to = out.data + (first + i) * out.stride + run.first_row + row;
    if (lane == 0) *to = E == Epilogue::kAdd ? *to + total : total;
  }
}

template <DataType T>
void launch_floats(const MatrixRun& run, const FloatRows& in, int rows, const FloatRows& out,
                   Epilogue epilogue, cudaStream_t stream) {
  const auto size = static_cast<int64_t>(row_bytes(T, run.columns));
  const LaunchShape shape{dim3(static_cast<unsigned>((run.rows + kWarps - 1) / kWarps),
                               static_cast<unsigned>((rows + kFloatRows - 1) / kFloatRows)),
                          dim3(32 * kWarps), 0, true};
  if (epilogue == Epilogue::kAdd)
    launch(multiply_float_rows<T, Epilogue::kAdd>, shape, stream, run, size, in, rows, out);
  else
    launch(multiply_float_rows<T, Epilogue::kStore>, shape, stream, run, size, in, rows, out);
}

}  // namespace

SignWork work_of(const SignProduct& product) {
  const MatrixRun& run = *product.run;
  return {run.sign,
          product.in,
          product.out,
          static_cast<int32_t>(run.first_row),
          static_cast<int32_t>(run.rows),
          run.interleaved,
          static_cast<int32_t>((run.columns + kGroup - 1) / kGroup),
          static_cast<int32_t>(run.columns / (run.sign.bits == 1 ? 128 : 64)),
          product.rows};
}

void multiply_sign(const SignProduct& product, int multiprocessors, cudaStream_t stream) {
  if (product.rows == 1) {
    RowProduct row{};
    row.run = product.run;
    row.in = product.in;
    row.out = product.out;
    row.epilogue = product.epilogue;
    return multiply_row({}, row, multiprocessors, stream);
  }
  if (product.rows <= kPlaneRows) return multiply_planes(product, multiprocessors, stream);
  multiply_tiles(product, tile_of(product.run->rows, product.rows, multiprocessors), stream);
}

void multiply_floats(const MatrixRun& run, const FloatRows& in, int rows, const FloatRows& out,
                     Epilogue epilogue, cudaStream_t stream) {
  switch (run.type) {
    case DataType::kF32:
      return launch_floats<DataType::kF32>(run, in, rows, out, epilogue, stream);
    case DataType::kF16:
      return launch_floats<DataType::kF16>(run, in, rows, out, epilogue, stream);
    case DataType::kBF16:
      return launch_floats<DataType::kBF16>(run, in, rows, out, epilogue, stream);
    case DataType::kQ8_0:
      return launch_floats<DataType::kQ8_0>(run, in, rows, out, epilogue, stream);
    default:
      return launch_floats<DataType::kQ4_0>(run, in, rows, out, epilogue, stream);
  }
}

}  // namespace niwaki::cuda
