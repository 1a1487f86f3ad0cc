#define NIWAKI_SIMD_NEON
#include "cpu/training/training_kernels_impl.h"

namespace niwaki {

const TrainingKernels kNeonTrainingKernels = kKernels;

}  // namespace niwaki
