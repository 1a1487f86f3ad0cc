#pragma once
// RMS norm: the factor that all of a row share, from the sums of squares of its groups.
#include "cuda/quantize.h"

namespace niwaki::cuda {

/// What an RMS norm multiplies by: [width] in device memory, or null.
struct NormWeights {
  const float* weights;
  float eps;
};

/// Of a group that eight lanes have; element e of a lane is column octet_column(lane, e).
__device__ inline float group_squares(const float (&value)[16]) {
  float sum = 0;
#pragma unroll
  for (float v : value) sum = __fmaf_rn(v, v, sum);
  return octet_sum(sum);
}
/// By a whole warp, in every lane and warp alike. `sum`: of all squares.
__device__ inline float norm_factor(const float* squares, int groups, int width, float eps, float& sum) {
  sum = 0;
  for (int group = static_cast<int>(threadIdx.x) % 32; group < groups; group += 32) sum += squares[group];
  sum = warp_sum(sum);
  return rsqrtf(__fmaf_rn(sum, 1.0f / static_cast<float>(width), eps));
}
/// The columns of a group that a lane of eight has; `otherwise` beyond the row's end, of which `width` is a
/// multiple of 16, or if there is no row.
__device__ inline void read_octet(const float* row, int group, int width, float (&value)[16],
                                  float otherwise = 0) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int e = 0; e < 16; e += 4) {
    const int column = group * kGroup + octet_column(lane, e);
    float4 four = make_float4(otherwise, otherwise, otherwise, otherwise);
    if (row != nullptr && column < width) four = __ldcg(reinterpret_cast<const float4*>(row + column));
    value[e] = four.x;
    value[e + 1] = four.y;
    value[e + 2] = four.z;
    value[e + 3] = four.w;
  }
}
__device__ inline bool is_finite(float x) {
  return fabsf(x) <= 3.402823466e38f;
}

}  // namespace niwaki::cuda
