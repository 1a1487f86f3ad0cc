#pragma once
#include "cpu/linear_kernels.h"

namespace niwaki {

/// Up to so many rows of the step memory is the limit, and multiply_planes comes closest to it. More do not
/// fit the registers.
constexpr int plane_rows(int bits) {
  return bits == 1 ? 3 : 2;
}

/// Bytes of the tables of one group of activations.
constexpr size_t kPlaneTableBytes = kGroupColumns * 8;

/// See LinearKernels::build_tables, for tiles of up to plane_rows(bits) rows.
void build_planes(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets);

/// See LinearKernels::multiply_sign, for such tiles and weights in SignOrder::kColumns.
void multiply_planes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                     int64_t out_stride);

}  // namespace niwaki
