#include <algorithm>

#include "cuda/linear_kernels.h"
#include "cuda/rows.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostWarps = 16;  // of a row that is prepared

/// A weight of a sign type: see SignWeights.
__device__ inline float sign_weight(const MatrixRun& run, int64_t row, int64_t column) {
  const SignWeights& w = run.sign;
  int64_t tile = row / 16;
  int in_tile = static_cast<int>(row % 16);
  if (run.interleaved) {
    const int64_t half = run.rows / 2, of_tensor = row % half;
    tile = of_tensor / 8;
    in_tile = static_cast<int>(of_tensor % 8) + (row < half ? 0 : 8);
  }
  const int per_slice = w.bits == 1 ? 128 : 64, c = static_cast<int>(column % per_slice);
  const auto slice = static_cast<int>(column / per_slice);
  const size_t unit = w.unit_index(tile, slice / 2);
  const int part = slice % 2 * 2 + in_tile / 8, i = in_tile % 8;
  const auto* scales = reinterpret_cast<const unsigned short*>(w.scales + unit * 8 + i);
  const float scale = half_bits_to_float(scales[part]);
  const auto* words = reinterpret_cast<const uint32_t*>(w.words + unit * 32);
  if (w.bits == 2) {
    const uint32_t word = words[(i * 4 + c / 16) * 4 + part];
    return scale * static_cast<float>(static_cast<int>(word >> 2 * (c % 16) & 3) - 1);
  }
  // The lane of group_column(lane, word).
  const int word = c / 16 % 4, lane = c / 64 * 8 + (c & 8) * 2 + (c & 7);
  return words[(i * 4 + word) * 4 + part] >> lane & 1 ? scale : -scale;
}

__device__ inline float float_weight(const MatrixRun& run, int64_t row_size, int64_t row, int64_t column) {
  const uint8_t* data = run.data + row * row_size;
  switch (run.type) {
    case DataType::kF32:
      return float_at<DataType::kF32>(data, column);
    case DataType::kF16:
      return float_at<DataType::kF16>(data, column);
    case DataType::kBF16:
      return float_at<DataType::kBF16>(data, column);
    case DataType::kQ8_0:
      return float_at<DataType::kQ8_0>(data, column);
    default:
      return float_at<DataType::kQ4_0>(data, column);
  }
}

/// The rows of a table that one of its runs has.
__global__ void embed_rows(StepView step, MatrixRun run, int64_t row_size, FloatRows out) {
  start_successor();
  wait_for_predecessor();
  const int row = static_cast<int>(blockIdx.x);
  if (row >= step.counts->rows) return;
  const int64_t token = step.tokens[row] - run.first_row;
  if (token < 0 || token >= run.rows) return;
  for (int64_t c = threadIdx.x; c < run.columns; c += blockDim.x) {
    out.data[row * out.stride + c] =
        run.data == nullptr ? sign_weight(run, token, c) : float_weight(run, row_size, token, c);
  }
}

/// Half a warp has a group: grid (rows, parts of a row), but a block has all of a row that is normed.
__global__ void __launch_bounds__(kMostWarps * 32) prepare_row(StepView step, Preparation work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* squares = reinterpret_cast<float*>(shared);  // of each group
  start_successor();
  const int row = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x) % 32;
  const int half = static_cast<int>(threadIdx.x) / 16, halves = static_cast<int>(blockDim.x) / 16;
  const int groups = (work.width + kGroup - 1) / kGroup;
  const bool normed = work.norm.weights != nullptr, at_once = normed && groups <= halves;
  float weights[8], value[8], factor = 1;
  read_group(work.norm.weights, half, work.width, weights, 1);
  wait_for_predecessor();
  const bool there = row < (work.of.outputs ? step.counts->outputs : step.counts->rows);
  const float* x = work.in.data + row * work.in.stride;
  if (normed) {
    for (int first = 0; first < groups; first += halves) {
      read_group(x, first + half, work.width, value);
      const float sum = group_squares(value);
      if (lane % 16 == 0 && first + half < groups) squares[first + half] = sum;
    }
    __syncthreads();
    float sum;
    factor = norm_factor(squares, groups, 1.0f / static_cast<float>(work.width), work.norm.eps, sum);
    if (threadIdx.x == 0 && there && !is_finite(sum)) report_bad(step, work.norm_op, row);
  }
  for (int first = static_cast<int>(blockIdx.y) * halves; first < groups;
       first += halves * static_cast<int>(gridDim.y)) {
    const int group = first + half;
    if (!at_once) {
      read_group(x, group, work.width, value);
      read_group(work.norm.weights, group, work.width, weights, 1);
    }
    const int column = group * kGroup + half_warp_column(lane, 0);
    if (work.out.data != nullptr && column < work.width) {
      float* out = work.out.data + row * work.out.stride + column;
#pragma unroll
      for (int e = 0; e < 8; e += 4) {
        const auto normed_at = [&](int i) { return value[e + i] * factor * weights[e + i]; };
        *reinterpret_cast<float4*>(out + e) =
            make_float4(normed_at(0), normed_at(1), normed_at(2), normed_at(3));
      }
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) value[e] *= weights[e];
    for (int i = 0; i < work.layouts; ++i) {
      const bool finite = quantize_half_warp(work.quantized[i], row, group, group < groups, value, factor);
      if (!finite && lane % 16 == 0 && there) report_bad(step, work.of.op, row);
    }
  }
}

__global__ void swiglu_rows(FloatRows x, int32_t width, FloatRows out, bool accumulate) {
  start_successor();
  wait_for_predecessor();
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= width) return;
  const float* from = x.data + blockIdx.y * x.stride + c;
  float* to = out.data + blockIdx.y * out.stride + c;
  const float y = silu(__ldcg(from)) * __ldcg(from + width);
  *to = accumulate ? *to + y : y;
}

__global__ void copy_row(FloatRows in, int32_t width, FloatRows out) {
  start_successor();
  wait_for_predecessor();
  for (int c = static_cast<int>(threadIdx.x); c < width; c += static_cast<int>(blockDim.x))
    out.data[blockIdx.x * out.stride + c] = __ldcg(in.data + blockIdx.x * in.stride + c);
}

__global__ void dequantize_row(MatrixRun run, int64_t row_size, int64_t first_row, float* out) {
  for (int64_t c = threadIdx.x; c < run.columns; c += blockDim.x) {
    const int64_t row = first_row + blockIdx.x;
    out[blockIdx.x * run.columns + c] =
        run.data == nullptr ? sign_weight(run, row, c) : float_weight(run, row_size, row, c);
  }
}

__global__ void select_rows(StepView step, FloatRows in, FloatRows out, int32_t width) {
  start_successor();
  wait_for_predecessor();
  const int i = static_cast<int>(blockIdx.x);
  if (i >= step.counts->outputs) return;
  const int64_t row = step.outputs[i];
  for (int c = static_cast<int>(threadIdx.x); c < width; c += static_cast<int>(blockDim.x))
    out.data[i * out.stride + c] = __ldcg(in.data + row * in.stride + c);
}

}  // namespace

void embed(const StepView& step, const CudaMatrix& table, const FloatRows& out, int rows,
           cudaStream_t stream) {
  for (const MatrixRun& run : table.runs()) {
    launch(embed_rows, {dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, true}, stream, step, run,
           static_cast<int64_t>(row_bytes(run.type, run.columns)), out);
  }
}

void prepare_rows(const StepView& step, const Preparation& work, int rows, cudaStream_t stream) {
  const int groups = (work.width + kGroup - 1) / kGroup;
  // A norm needs all of a row. Without one, few rows are spread over more blocks.
  const bool normed = work.norm.weights != nullptr;
  const int warps = std::min((groups + 1) / 2, normed ? kMostWarps : rows <= kPlaneRows ? 1 : 8);
  const int parts = normed ? 1 : (groups + 2 * warps - 1) / (2 * warps);
  launch(prepare_row,
         {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(parts)),
          dim3(static_cast<unsigned>(32 * warps)), static_cast<size_t>(groups) * sizeof(float), true},
         stream, step, work);
}

void swiglu(const FloatRows& x, int32_t width, const FloatRows& out, bool accumulate, int rows,
            cudaStream_t stream) {
  launch(swiglu_rows,
         {dim3(static_cast<unsigned>((width + kThreads - 1) / kThreads), static_cast<unsigned>(rows)),
          dim3(kThreads), 0, true},
         stream, x, width, out, accumulate);
}

void copy_rows(const FloatRows& in, int32_t width, const FloatRows& out, int rows, cudaStream_t stream) {
  launch(copy_row, {dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, true}, stream, in, width, out);
}

std::vector<float> read_rows(const CudaMatrix& matrix, int64_t first_row, int64_t rows, cudaStream_t stream) {
  const size_t row_floats = static_cast<size_t>(matrix.columns());
  std::vector<float> values(static_cast<size_t>(rows) * row_floats);
  for (const MatrixRun& run : matrix.runs()) {
    const int64_t begin = std::max(first_row, run.first_row),
                  end = std::min(first_row + rows, run.first_row + run.rows);
    if (begin >= end) continue;
    const DeviceMemory memory(static_cast<size_t>(end - begin) * row_floats * sizeof(float),
                              "reading weights");
    launch(dequantize_row, {dim3(static_cast<unsigned>(end - begin)), dim3(kThreads)}, stream, run,
           static_cast<int64_t>(row_bytes(run.type, run.columns)), begin - run.first_row, memory.at<float>());
    check(cudaMemcpyAsync(values.data() + static_cast<size_t>(begin - first_row) * row_floats,
                          memory.at<void>(), memory.size(), cudaMemcpyDeviceToHost, stream),
          "reading weights");
    check(cudaStreamSynchronize(stream), "reading weights");
  }
  return values;
}

void select_outputs(const StepView& step, const FloatRows& in, const FloatRows& out, int32_t width,
                    int outputs, cudaStream_t stream) {
  launch(select_rows, {dim3(static_cast<unsigned>(outputs)), dim3(kThreads), 0, true}, stream, step, in, out,
         width);
}

}  // namespace niwaki::cuda
