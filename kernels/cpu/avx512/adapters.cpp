#define NIWAKI_SIMD_AVX512
#include "cpu/adapter_kernels_impl.h"

namespace niwaki {

const AdapterKernels kAvx512AdapterKernels = {largest_of_columns, largest_value, pack_a, pack_b, project, add,
                                              row_norm,           widen};

}  // namespace niwaki
