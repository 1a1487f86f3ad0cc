#pragma once
#include "cpu/linear_kernels.h"

namespace niwaki {

/// Tiles of up to so many rows go by multiply_quads. More do not fit the registers.
constexpr int kQuadRows = 5;

/// Bytes of the tables of one group of activations.
constexpr size_t quad_table_bytes(int bits) {
  return static_cast<size_t>(kGroupColumns * bits) * 8;
}

/// See LinearKernels::build_tables, for such tiles.
void build_quads(int bits, const int16_t* quanta, uint8_t* tables);

/// See LinearKernels::multiply_sign, for such tiles and weights in SignOrder::kQuads.
void multiply_quads(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                    int64_t out_stride);

}  // namespace niwaki
