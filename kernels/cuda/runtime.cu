#include "cuda/runtime.h"
#include "niwaki/error.h"

namespace niwaki::cuda {

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is told now, not again by a later call
  throw Error(status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kIo,
              "CUDA: " + what + ": " + cudaGetErrorString(status));
}

bool OncePerGpu::first() {
  int gpu;
  check(cudaGetDevice(&gpu), "asking for the current GPU");
  const uint64_t bit = uint64_t{1} << gpu % 64;
  return (done_.fetch_or(bit) & bit) == 0;
}

}  // namespace niwaki::cuda
