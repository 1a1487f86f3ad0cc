#include "cuda/runtime.h"
#include "niwaki/error.h"

namespace niwaki::cuda {

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is told now, not again by a later call
  throw Error(status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kIo,
              "CUDA: " + what + ": " + cudaGetErrorString(status));
}

}  // namespace niwaki::cuda
