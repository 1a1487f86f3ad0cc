#include "cpu/training/training_kernels_impl.h"

namespace niwaki {

const TrainingKernels kPortableTrainingKernels = kKernels;

}  // namespace niwaki
