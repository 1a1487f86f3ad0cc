#define NIWAKI_SIMD_NEON
#include "cpu/attention_kernels_impl.h"
#include "cpu/kv_store_impl.h"

namespace niwaki {

const AttentionKernels kNeonAttentionKernels = {attend, store_key, store_value};

}  // namespace niwaki
