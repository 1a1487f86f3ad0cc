#pragma once
#include "cpu/linear_kernels.h"

namespace niwaki {

/// Whether tiles of so many rows and weights of so many bits go by multiply_vbmi.
constexpr bool vbmi_takes(int rows, int bits) {
  return bits == 1 && rows >= 2 && rows <= 5;
}

/// Bytes of the tables of one group of activations.
constexpr size_t kVbmiTableBytes = 2816;

/// See LinearKernels::build_tables, for such tiles.
void build_vbmi(const int16_t* quanta, uint8_t* tables, int32_t* offsets);

/// See LinearKernels::multiply_sign, for such tiles.
void multiply_vbmi(const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                   int64_t out_stride);

}  // namespace niwaki
