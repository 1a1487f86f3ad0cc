#define NIWAKI_SIMD_AVX2
#include "cpu/adapter_kernels_impl.h"

namespace niwaki {

const AdapterKernels kAvx2AdapterKernels = {largest_of_columns, largest_value, pack_a, pack_b, project, add,
                                            row_norm,           widen};

}  // namespace niwaki
