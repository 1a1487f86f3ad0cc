#pragma once
// The CUDA runtime, or the emulator of it that runs the same kernels on the CPU (tests on machines without a
// GPU).
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#ifdef NIWAKI_CUDA_EMULATED
#include "cuda/emulated/cuda_runtime.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace niwaki::cuda {

/// Throws kOutOfMemory for cudaErrorMemoryAllocation, else kIo; the message says what was tried and CUDA's
/// reason.
void check(cudaError_t status, const std::string& what);

/// Blocks and threads of a launch. `shared` is the dynamic shared memory of a block in bytes; above 48 KB the
/// kernel needs allow_shared() once. With `early` the kernel may start before its predecessor in the stream
/// has ended, and must call wait_for_predecessor() before it reads what that writes (programmatic dependent
/// launch).
struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared = 0;
  bool early = false;
};

}  // namespace niwaki::cuda

#ifdef NIWAKI_CUDA_EMULATED
#include "cuda/emulated/launch.h"
#endif

namespace niwaki::cuda {

#ifndef NIWAKI_CUDA_EMULATED
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
            Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "starting a kernel");
}
#endif

/// What is to be done once on each GPU of the process, by whoever launches there first.
class OncePerGpu {
 public:
  /// Whether it is the first time for the current GPU.
  bool first();

 private:
  std::atomic<uint64_t> done_{0};
};

/// For the current GPU.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
}

}  // namespace niwaki::cuda
