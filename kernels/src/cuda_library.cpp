#include <dlfcn.h>

#include <map>
#include <mutex>

#include "niwaki/cuda.h"
#include "niwaki/error.h"

namespace niwaki {

CudaLibrary& load_cuda_library(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, CudaLibrary*> loaded;
  const std::lock_guard lock(mutex);
  CudaLibrary*& library = loaded[path];
  if (library != nullptr) return *library;
  const auto refuse = [&path](const std::string& why) {
    throw Error(ErrorCode::kUnsupported, "the CUDA kernels of " + path + " cannot be loaded: " + why);
  };
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) refuse(dlerror());
  const auto entry = reinterpret_cast<NiwakiCudaLibrary*>(dlsym(handle, kCudaSymbol));
  if (entry == nullptr) refuse("it is another library");
  CudaLibrary* found = entry(kCudaAbi);
  if (found == nullptr)
    refuse("it was built from other sources than @niwaki/kernels-native; both must have the same version");
  library = found;
  return *library;
}

}  // namespace niwaki
