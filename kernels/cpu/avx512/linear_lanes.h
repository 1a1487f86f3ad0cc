#pragma once
#include "cpu/linear_kernels.h"

namespace niwaki {

/// Rows of the step that lie side by side.
constexpr int kLaneRows = 32;

/// See LinearKernels.
void build_avx512_lanes(const int16_t* quanta, int16_t* lanes);
void multiply_avx512_lanes(DataType type, SignOrder order, const uint8_t* weights, int64_t blocks,
                           const SignTile& tile, float* out, int64_t out_stride, float* workspace);

}  // namespace niwaki
