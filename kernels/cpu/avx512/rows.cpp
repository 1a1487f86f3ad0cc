#define NIWAKI_SIMD_AVX512
#include "cpu/row_kernels_impl.h"

namespace niwaki {

const RowKernels kAvx512RowKernels = {rms_norm, norm_rope, argmax, exp_weights, above};

}  // namespace niwaki
