#define NIWAKI_SIMD_NEON
#include "cpu/adapter_kernels_impl.h"

namespace niwaki {

const AdapterKernels kNeonAdapterKernels = {largest_of_columns, largest_value, pack_a, pack_b, project, add,
                                            row_norm,           widen};

}  // namespace niwaki
