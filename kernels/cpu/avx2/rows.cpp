#define NIWAKI_SIMD_AVX2
#include "cpu/row_kernels_impl.h"

namespace niwaki {

const RowKernels kAvx2RowKernels = {rms_norm, norm_rope, argmax, exp_weights, above};

}  // namespace niwaki
