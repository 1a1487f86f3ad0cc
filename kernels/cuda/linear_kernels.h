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

/// A product as its kernels take it.
struct SignWork {
  SignWeights weights;
  Quantized in;
  FloatRows out;
  int32_t first_row;  // of the run, in a row of `out`
  int32_t run_rows;
  bool interleaved;  // see MatrixRun
  int32_t groups;    // of kGroup activations
  int32_t slices;    // of weights that are there
  int32_t rows;      // of the step

  /// Where rows i and i + 8 of a tile go, in a row of `out`; -1 for a row that is not there.
  __device__ int low_column(int tile, int i) const {
    const int row = interleaved ? 8 * tile + i : 16 * tile + i;
    return row < (interleaved ? run_rows / 2 : run_rows) ? first_row + row : -1;
  }
  __device__ int high_column(int tile, int i) const {
    if (interleaved) return low_column(tile, i) < 0 ? -1 : low_column(tile, i) + run_rows / 2;
    const int row = 16 * tile + i + 8;
    return row < run_rows ? first_row + row : -1;
  }
};

SignWork work_of(const SignProduct& product);
void multiply_planes(const SignProduct& product, int multiprocessors, cudaStream_t stream);

/// Shapes of tiles of the step's and the weights' rows, by their rows of the step.
constexpr int kTileShapes = 7;
bool tile_fits(int tile, int rows);
/// The one that takes the least time, by what is known of each and how many a multiprocessor gets.
int tile_of(int64_t weight_rows, int rows, int multiprocessors);
void multiply_tiles(const SignProduct& product, int tile, cudaStream_t stream);

}  // namespace niwaki::cuda
