#pragma once
// RMS norm: the factor that all of a row share, from the sums of squares of its groups.
#include "cuda/quantize.h"

namespace niwaki::cuda {

/// What an RMS norm multiplies by: [width] in device memory, or null.
struct NormWeights {
  const float* weights;
  float eps;
};

/// Of a group that half a warp has; element e of a lane is column half_warp_column(lane, e).
__device__ inline float group_squares(const float (&value)[8]) {
  float sum = 0;
#pragma unroll
  for (float v : value) sum = __fmaf_rn(v, v, sum);
  return half_warp_sum(sum);
}
/// By a whole warp, in every lane and warp alike. `sum`: of all squares.
__device__ inline float norm_factor(const float* squares, int groups, float inverse_width, float eps,
                                    float& sum) {
  sum = 0;
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x) % 32; group < groups; group += 32) sum += squares[group];
  sum = warp_sum(sum);
  return rsqrtf(__fmaf_rn(sum, inverse_width, eps));
}
/// Eight floats, or `otherwise` for null.
__device__ inline void read_lane(const float* from, float (&value)[8], float otherwise) {
  float4 low = make_float4(otherwise, otherwise, otherwise, otherwise), high = low;
  if (from != nullptr) {
    low = __ldcg(reinterpret_cast<const float4*>(from));
    high = __ldcg(reinterpret_cast<const float4*>(from) + 1);
  }
  const float all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int e = 0; e < 8; ++e) value[e] = all[e];
}
/// The columns of a group that a lane of half a warp has; `otherwise` beyond the row's end, of which `width`
/// is a multiple of 16, or if there is no row.
__device__ inline void read_group(const float* row, int group, int width, float (&value)[8],
                                  float otherwise = 0) {
  const int column = group * kGroup + half_warp_column(static_cast<int>(threadIdx.x & 31), 0);
  read_lane(row != nullptr && column < width ? row + column : nullptr, value, otherwise);
}
__device__ inline bool is_finite(float x) {
  return fabsf(x) <= 3.402823466e38f;
}

}  // namespace niwaki::cuda
