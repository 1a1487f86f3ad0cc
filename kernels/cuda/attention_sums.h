#pragma once
// What attention.h says of spans and steps, for the sums that a thread has in registers; for attention.cu
// alone.
#include "cuda/primitives.h"

namespace niwaki::cuda {
namespace {

/// The sums of a tile of sixteen units over kTiles times 8 dimensions, as a lane has them: those of units
/// lane / 4 and lane / 4 + 8, and of every 8 dimensions the pair lane % 4, as the matrix instruction leaves
/// its results.
template <int kTiles>
struct Sums {
  float of_span[kTiles][4], all[kTiles][4];
  float span_total[4];  // of units 0 and 8: [0] and [2]
  float span_max[2], total[2], max[2];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) all[i][j] = 0;
    }
    total[0] = total[1] = 0;
    max[0] = max[1] = -INFINITY;
  }
  __device__ void begin_span() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) of_span[i][j] = 0;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) span_total[j] = 0;
    span_max[0] = span_max[1] = -INFINITY;
  }
  /// Takes the maxima of a step in. Returns in `base` what its scores are taken relative to, in `factor` what
  /// scale_span must then take.
  __device__ void raise(const float (&step_max)[2], float (&base)[2], float (&factor)[2]) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float m = fmaxf(span_max[u], step_max[u]);
      base[u] = m == -INFINITY ? 0.0f : m;  // no token yet that the unit sees
      factor[u] = exp2_approx(span_max[u] - base[u]);
      span_max[u] = m;
    }
  }
  __device__ void scale_span(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) of_span[i][j] *= factor[j / 2];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) span_total[j] *= factor[j / 2];
  }
  __device__ void end_span() {
    float a[2], b[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float m = fmaxf(max[u], span_max[u]), base = m == -INFINITY ? 0.0f : m;
      a[u] = exp2_approx(max[u] - base);
      b[u] = exp2_approx(span_max[u] - base);
      max[u] = m;
      total[u] = fmaf(span_total[2 * u], b[u], total[u] * a[u]);
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) all[i][j] = fmaf(of_span[i][j], b[j / 2], all[i][j] * a[j / 2]);
    }
  }
};

}  // namespace
}  // namespace niwaki::cuda
