#pragma once
// What the threads of a warp find together, by trees of one shape.
#include <cstring>

#include "cuda/primitives.h"

namespace niwaki::cuda {

constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

/// Two numbers as float16, the first in the low half.
__device__ inline uint32_t pack_halves(float low, float high) {
  const __half2 halves = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &halves, sizeof bits);
  return bits;
}
/// Whether a number is finite as float16.
__device__ inline bool fits_half(float x) {
  return fabsf(x) < 65520.0f;
}

}  // namespace niwaki::cuda
