#pragma once
#include "niwaki/cuda.h"

namespace niwaki::cuda {

/// Of the current GPU; see CudaLibrary::measure. Throws kOutOfMemory.
GpuBounds measure_bounds();

}  // namespace niwaki::cuda
