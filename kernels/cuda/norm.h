#pragma once
// RMS norm: the factor that all of a row share, from the sums of squares of its groups.
#include "cuda/quantize.h"

namespace niwaki::cuda {

/// What an RMS norm multiplies by: [width] in device memory, or null.
struct NormWeights {
  const float* weights;
  float eps;
};

/// Of a group that a warp has, of which a lane has the columns of group_column.
__device__ inline float group_squares(const float (&value)[4]) {
  float sum = 0;
  for (float v : value) sum = __fmaf_rn(v, v, sum);
  return warp_sum(sum);
}
/// By a whole warp, in every lane and warp alike. `sum`: of all squares.
__device__ inline float norm_factor(const float* squares, int groups, int width, float eps, float& sum) {
  sum = 0;
  for (int group = static_cast<int>(threadIdx.x) % 32; group < groups; group += 32) sum += squares[group];
  sum = warp_sum(sum);
  return 1.0f / sqrtf(sum / static_cast<float>(width) + eps);
}
__device__ inline bool is_finite(float x) {
  return fabsf(x) <= 3.402823466e38f;
}

}  // namespace niwaki::cuda
