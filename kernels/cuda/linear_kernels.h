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

/// A weight of a float type as it lies in a file.
template <DataType T>
__device__ inline float float_at(const uint8_t* row, int64_t column) {
  const auto half_at = [](const uint8_t* p) {
    return half_bits_to_float(static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8);
  };
  if constexpr (T == DataType::kF32) return reinterpret_cast<const float*>(row)[column];
  if constexpr (T == DataType::kF16) return half_at(row + 2 * column);
  if constexpr (T == DataType::kBF16)
    return __uint_as_float(static_cast<uint32_t>(row[2 * column]) << 16 |
                           static_cast<uint32_t>(row[2 * column + 1]) << 24);
  if constexpr (T == DataType::kQ8_0) {
    const uint8_t* block = row + column / 32 * 34;
    return half_at(block) * static_cast<float>(static_cast<int8_t>(block[2 + column % 32]));
  }
  const uint8_t* block = row + column / 32 * 18;
  const int byte = block[2 + column % 16];
  return half_at(block) * static_cast<float>((column % 32 < 16 ? byte & 15 : byte >> 4) - 8);
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
