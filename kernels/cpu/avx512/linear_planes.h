#pragma once
#include "cpu/linear_kernels.h"

namespace niwaki {

/// Up to so many rows of the step memory is the limit, and multiply_planes comes closest to it.
constexpr int kPlaneRows = 3;

/// See LinearKernels::build_tables, for tiles of up to kPlaneRows rows.
void build_planes(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets);

/// See LinearKernels::multiply_sign, for tiles of up to kPlaneRows rows whose tables are `table_stride` bytes
/// apart.
void multiply_planes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                     size_t table_stride, float* out, int64_t out_stride);

}  // namespace niwaki
