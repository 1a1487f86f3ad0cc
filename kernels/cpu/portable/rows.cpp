#include "cpu/row_kernels_impl.h"

namespace niwaki {

const RowKernels kPortableRowKernels = {rms_norm, norm_rope, argmax, exp_weights, above};

}  // namespace niwaki
