#define NIWAKI_SIMD_NEON
#include "cpu/row_kernels_impl.h"

namespace niwaki {

const RowKernels kNeonRowKernels = {rms_norm, norm_rope, argmax, exp_weights, above};

}  // namespace niwaki
