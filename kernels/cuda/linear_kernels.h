#pragma once
// What the kernels of sign weights share.
#include "cuda/linear.h"

namespace niwaki::cuda {

__device__ inline float half_bits_to_float(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffff)));
}

__device__ inline float silu(float x) {
  return x / (1.0f + expf(-x));
}

/// Where results go, and what there is of rows and columns.
struct Target {
  FloatRows out;
  int32_t first_row;   // of the run, in a row of `out`
  int32_t rows;        // of the run
  bool interleaved;    // see MatrixRun
  int32_t groups;      // of kGroup activations
  int32_t slices;      // of weights that are there

  /// Stores rows i and i + 8 of a tile for a row of the step.
  template <Epilogue E>
  __device__ void finish(int tile, int i, int step_row, float low, float high) const {
    float* to = out.data + step_row * out.stride + first_row;
    if constexpr (E == Epilogue::kSwiglu) {
      if (2 * (8 * tile + i) < rows) to[8 * tile + i] = silu(low) * high;
      return;
    }
    const int a = interleaved ? 8 * tile + i : 16 * tile + i, b = interleaved ? rows / 2 + a : a + 8;
    const bool has_a = interleaved ? 2 * a < rows : a < rows, has_b = interleaved ? has_a : b < rows;
    if (has_a) to[a] = E == Epilogue::kAdd ? to[a] + low : low;
    if (has_b) to[b] = E == Epilogue::kAdd ? to[b] + high : high;
  }
};

void multiply_planes(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                     int multiprocessors, cudaStream_t stream);
void multiply_tiles(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                    int multiprocessors, cudaStream_t stream);

}  // namespace niwaki::cuda
