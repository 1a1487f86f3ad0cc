#include "cpu/avx512/linear_planes_impl.h"

namespace niwaki {

void build_planes(int bits, const int16_t* quanta, uint8_t* tables, int32_t* offsets) {
  build_plane_tables(bits, quanta, tables, offsets);
}

void multiply_planes(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile, float* out,
                     int64_t out_stride) {
  multiply_with_planes(type, weights, blocks, tile, out, out_stride);
}

}  // namespace niwaki
