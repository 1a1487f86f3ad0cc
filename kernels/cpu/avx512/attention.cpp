#define NIWAKI_SIMD_AVX512
#include "cpu/attention_kernels_impl.h"
#include "cpu/kv_store_impl.h"

namespace niwaki {

const AttentionKernels kAvx512AttentionKernels = {attend, store_key, store_value};

}  // namespace niwaki
