#pragma once
#include <cstdint>

#include "cuda/primitives.h"
#include "cuda/step_view.h"

namespace niwaki::cuda {

/// Columns that share a scale of activations.
constexpr int kGroup = 128;

/// Rows of activations as integers of at most 511, in the order in which matrix instructions take them; see
/// kernels/README.md. kPlanes: two bytes of an integer apart, for few rows; kHalves: float16, for many.
enum class QuantizedLayout : int32_t { kPlanes, kHalves };

struct Quantized {
  QuantizedLayout layout;
  int32_t rows;   // that there is room for; a multiple of 4 (kPlanes) or 8 (kHalves)
  uint8_t* data;  // kPlanes: [group][4 rows][1,024 bytes]; kHalves: [group][8 rows][2,048 bytes]
  float* scales;  // [group][rows]
  int32_t* sums;  // [group][rows]: of the integers
};

/// By a whole warp: quantizes `count` <= kGroup columns of a row as cpu/quantize.h does, of which lane l has 4 l .. 4 l + 3 (zeros
/// from `count` on). Returns false, in all lanes, and stores nothing sensible, if one is NaN or infinite.
__device__ bool quantize_group(const Quantized& out, int row, int group, const float (&x)[4]);

}  // namespace niwaki::cuda
