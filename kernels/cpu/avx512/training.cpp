#define NIWAKI_SIMD_AVX512
#include "cpu/training/training_kernels_impl.h"

namespace niwaki {

const TrainingKernels kAvx512TrainingKernels = kKernels;

}  // namespace niwaki
