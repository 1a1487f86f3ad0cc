#pragma once
// Rows as linear operations take them: normed, quantized.
#include "cuda/linear.h"
#include "cuda/step_view.h"

namespace niwaki::cuda {

/// The factor of an RMS norm from the sums of squares of a row's groups, in every warp alike.
__device__ inline float norm_factor(const float* squares, int groups, int width, float eps, float& sum) {
  sum = 0;
  for (int group = static_cast<int>(threadIdx.x) % 32; group < groups; group += 32) sum += squares[group];
  sum = warp_sum(sum);
  return 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
}
__device__ inline float group_squares(const float (&value)[4]) {
  float sum = 0;
  for (float v : value) sum = __fmaf_rn(v, v, sum);
  return warp_sum(sum);
}
__device__ inline bool is_finite(float x) {
  return fabsf(x) <= 3.402823466e38f;
}

/// A row that all warps of a block norm and quantize (kBits1, kBits2), of at most kMost groups for each warp. What does not depend
/// on the kernels before is fetched by the constructor, the rest by run(). The scales lack the norm's factor, which needs all of
/// the row.
template <int kMost>
class BlockPreparation {
 public:
  __device__ BlockPreparation(const RowNorm& norm, int width)
      : norm_(norm), width_(width), groups_((width + kGroup - 1) / kGroup) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) weights_[i][t] = has(i, t) ? __ldg(norm.norm.weights + column(i, t)) : 0;
    }
  }

  /// `squares`: a float of shared memory for each group. The block must synchronize before it reads that, or `out`.
  __device__ void run(const StepView& step, const float* x, int row, bool reports, float* squares,
                      const Quantized& out) {
    float value[kMost][4];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
#pragma unroll
      for (int t = 0; t < 4; ++t) value[i][t] = has(i, t) ? __ldcg(x + column(i, t)) : 0;
    }
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (group(i) >= groups_) break;
      const float sum = group_squares(value[i]);
      if (lane == 0) squares[group(i)] = sum;
#pragma unroll
      for (int t = 0; t < 4; ++t) value[i][t] *= weights_[i][t];
      if (!quantize_lanes(out, 0, group(i), value[i], 1) && lane == 0 && reports) report_bad(step, norm_.op, row);
    }
  }
  /// After the block has synchronized, by all threads: what the scales are to be multiplied by.
  __device__ float factor(const StepView& step, int row, bool reports, const float* squares) const {
    float sum;
    const float result = norm_factor(squares, groups_, width_, norm_.norm.eps, sum);
    if (threadIdx.x == 0 && reports && !is_finite(sum)) report_bad(step, norm_.norm_op, row);
    return result;
  }

 private:
  __device__ int group(int i) const {
    return static_cast<int>(threadIdx.x) / 32 + i * static_cast<int>(blockDim.x) / 32;
  }
  __device__ int column(int i, int t) const {
    return group(i) * kGroup + group_column(static_cast<int>(threadIdx.x) % 32, t);
  }
  __device__ bool has(int i, int t) const { return group(i) < groups_ && column(i, t) < width_; }

  const RowNorm& norm_;
  int width_, groups_;
  float weights_[kMost][4];
};

}  // namespace niwaki::cuda
