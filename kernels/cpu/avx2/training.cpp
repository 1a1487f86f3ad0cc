#define NIWAKI_SIMD_AVX2
#include "cpu/training/training_kernels_impl.h"

namespace niwaki {

const TrainingKernels kAvx2TrainingKernels = kKernels;

}  // namespace niwaki
