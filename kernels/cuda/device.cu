#include <algorithm>

#include "cuda/bounds.h"
#include "cuda/kv_cache.h"
#include "cuda/plan.h"
#include "niwaki/cuda.h"
#include "niwaki/error.h"

namespace niwaki::cuda {
namespace {

constexpr int32_t kMajor = 9, kMinor = 0;  // Hopper: wgmma is of this compute capability alone

void enter(int32_t gpu) {
  check(cudaSetDevice(gpu), "choosing GPU " + std::to_string(gpu));
}

class CudaDevice final : public QueuedDevice {
 public:
  explicit CudaDevice(int32_t gpu) : QueuedDevice(std::min(usable_cores(), 16)), gpu_{gpu, 0, nullptr} {
    enter(gpu);
    check(cudaDeviceGetAttribute(&gpu_.multiprocessors, cudaDevAttrMultiProcessorCount, gpu), "asking a GPU");
    check(cudaStreamCreateWithFlags(&gpu_.stream, cudaStreamNonBlocking), "making a stream");
  }
  ~CudaDevice() override {
    close();
    cudaStreamDestroy(gpu_.stream);
  }

  int32_t threads() const override { return gpu_.multiprocessors; }
  const std::string& tier() const override { return tier_; }

  std::shared_ptr<KvCache> create_kv_cache(const KvShape& shape) override {
    enter(gpu_.index);
    return std::make_shared<CudaKvCache>(shape);
  }

  std::shared_ptr<Plan> compile(PlanSpec spec) override {
    enter(gpu_.index);
    return std::make_shared<CudaPlan>(std::move(spec), gpu_, identity());
  }

 private:
  void begin_job() override { enter(gpu_.index); }
  std::shared_ptr<const Matrix> pack(const std::vector<MatrixSource>& sources, int64_t columns) override {
    return CudaMatrix::pack(sources, columns, pool());
  }
  std::shared_ptr<QueuedSlots> make_slots(std::shared_ptr<QueuedPlan> plan, AdapterSlotsSpec spec) override {
    enter(gpu_.index);
    return std::make_shared<CudaPlanSlots>(std::static_pointer_cast<CudaPlan>(std::move(plan)),
                                           std::move(spec));
  }

  Gpu gpu_;
  const std::string tier_ = "cuda";
};

class Library final : public CudaLibrary {
 public:
  std::vector<GpuInfo> gpus() override {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (status == cudaErrorNoDevice) return {};
    if (status != cudaSuccess) {
      int driver = 0, runtime = 0;
      cudaDriverGetVersion(&driver);
      cudaRuntimeGetVersion(&runtime);
      const auto version = [](int v) {
        return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
      };
      throw Error(ErrorCode::kUnsupported, driver == 0 ? "there is no NVIDIA driver on this machine"
                                           : driver < runtime
                                               ? "the NVIDIA driver is for CUDA " + version(driver) +
                                                     "; these kernels need " + version(runtime)
                                               : std::string("CUDA: ") + cudaGetErrorString(status));
    }
    std::vector<GpuInfo> found;
    for (int i = 0; i < count; ++i) {
      cudaDeviceProp properties;
      check(cudaGetDeviceProperties(&properties, i), "asking GPU " + std::to_string(i));
      GpuInfo info{properties.name,
                   properties.major,
                   properties.minor,
                   static_cast<int64_t>(properties.totalGlobalMem),
                   0,
                   properties.major == kMajor && properties.minor == kMinor};
      if (info.usable) {
        size_t free = 0, total = 0;
        enter(i);
        check(cudaMemGetInfo(&free, &total), "asking GPU " + std::to_string(i));
        info.free_memory = static_cast<int64_t>(free);
      }
      found.push_back(std::move(info));
    }
    return found;
  }

  std::shared_ptr<Device> open(int32_t gpu) override {
    require(gpu);
    return std::make_shared<CudaDevice>(gpu);
  }

  GpuBounds measure(int32_t gpu) override {
    require(gpu);
    enter(gpu);
    return measure_bounds();
  }

 private:
  void require(int32_t gpu) {
    const std::vector<GpuInfo> all = gpus();
    if (gpu < 0 || static_cast<size_t>(gpu) >= all.size()) {
      throw Error(ErrorCode::kUnsupported, "there is no GPU " + std::to_string(gpu) + "; this machine has " +
                                               std::to_string(all.size()));
    }
    const GpuInfo& info = all[static_cast<size_t>(gpu)];
    if (!info.usable) {
      throw Error(ErrorCode::kUnsupported, "GPU " + std::to_string(gpu) + ", " + info.name +
                                               ", has compute capability " + std::to_string(info.major) +
                                               "." + std::to_string(info.minor) +
                                               "; these kernels are for Hopper (9.0)");
    }
  }
};

}  // namespace
}  // namespace niwaki::cuda

extern "C" __attribute__((visibility("default"))) niwaki::CudaLibrary* niwaki_cuda_library(int32_t abi) {
  static niwaki::cuda::Library library;
  return abi == niwaki::kCudaAbi ? &library : nullptr;
}
