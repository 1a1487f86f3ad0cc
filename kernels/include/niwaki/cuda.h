#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "niwaki/device.h"

namespace niwaki {

/// A GPU that a driver shows.
struct GpuInfo {
  std::string name;             // "NVIDIA H200"
  int32_t major, minor;         // compute capability
  int64_t memory, free_memory;  // bytes
  bool usable;                  // these kernels run on it
};

/// What a GPU reaches when it does nothing else: what bounds decoding, and what bounds prompts.
struct GpuBounds {
  double bytes_per_second;  // read from its memory
  double flops_per_second;  // of its matrix units, float16 with float32 sums
};

/// Devices on NVIDIA GPUs: a shared object of its own (kernels/cuda), so that nothing else needs CUDA.
class CudaLibrary {
 public:
  virtual ~CudaLibrary() = default;
  /// Throws kUnsupported with the reason if there is no driver, or one that is too old.
  virtual std::vector<GpuInfo> gpus() = 0;
  /// Throws kUnsupported for a GPU that is not there or not usable, kOutOfMemory. `threads()` of the device
  /// are its multiprocessors, `tier()` is "cuda".
  virtual std::shared_ptr<Device> open(int32_t gpu) = 0;
  /// Takes about a second, and as much of the GPU's memory as no cache holds. Throws as `open` does.
  virtual GpuBounds measure(int32_t gpu) = 0;
};

/// Loads the shared object, once per path; it stays loaded. Throws kUnsupported with the system's reason, and
/// if it was built from other sources than this library.
CudaLibrary& load_cuda_library(const std::string& path);

/// What both sides must agree about; rises with every change of these headers.
constexpr int32_t kCudaAbi = 2;
/// The one symbol of the shared object: gives null for another `abi`.
using NiwakiCudaLibrary = CudaLibrary*(int32_t abi);
constexpr const char* kCudaSymbol = "niwaki_cuda_library";

}  // namespace niwaki
