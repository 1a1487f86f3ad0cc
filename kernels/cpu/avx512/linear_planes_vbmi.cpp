#include "cpu/avx512/linear_planes_impl.h"

namespace niwaki {

void multiply_planes_vbmi(DataType type, const uint8_t* weights, int64_t blocks, const SignTile& tile,
                          float* out, int64_t out_stride) {
  multiply_with_planes(type, weights, blocks, tile, out, out_stride);
}

}  // namespace niwaki
