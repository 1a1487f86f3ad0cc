#include <algorithm>

#include "cuda/bounds.h"
#include "cuda/memory.h"
#include "cuda/primitives.h"

namespace niwaki::cuda {
namespace {

constexpr int kReadThreads = 1024;
constexpr int kUnroll = 8;
constexpr int kProducts = 4096;  // wgmma of each warpgroup
constexpr int kWarpgroups = 2, kColumns = 128;

__global__ void read_all(const uint4* from, size_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = load_streaming(from + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678) *sink = sum;  // so that nothing is left out
}

/// wgmma with both operands at hand. Numbers are random: a GPU is faster with zeros.
__global__ void __launch_bounds__(128 * kWarpgroups, 1) multiply_all(float* sink) {
  NIWAKI_DYNAMIC_SHARED(shared);
  float d[kColumns / 2];
#pragma unroll
  for (float& x : d) x = 0;
  uint32_t a[8][4], random = threadIdx.x * 2654435761u + blockIdx.x;
  const auto next = [&random] {
    random = random * 1664525u + 1013904223u;
    return (random & 0x83ff83ffu) | 0x38003800u;  // halves of 0.5 to 1, with signs
  };
#pragma unroll
  for (auto& four : a) {
#pragma unroll
    for (uint32_t& x : four) x = next();
  }
  for (unsigned i = threadIdx.x; i < kColumns * 64; i += blockDim.x)
    reinterpret_cast<uint32_t*>(shared)[i] = next();
  fence_async();
  __syncthreads();
  for (int i = 0; i < kProducts / 8; ++i) {
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < 8; ++k)
      wgmma_f16<kColumns>(d, a[k], describe_shared(shared + k * 256, 128, 2048), true);
    commit_wgmma();
    wait_wgmma<0>();
  }
  float sum = 0;
#pragma unroll
  for (float x : d) sum += x;
  if (sum == 12345.678f) *sink = sum;
}

/// Seconds of the fastest of some runs.
template <class F>
double fastest(cudaStream_t stream, F&& f) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "making an event");
  check(cudaEventCreate(&end), "making an event");
  float best = 1e30f;
  for (int i = 0; i < 10; ++i) {
    check(cudaEventRecord(begin, stream), "measuring");
    f();
    check(cudaEventRecord(end, stream), "measuring");
    check(cudaEventSynchronize(end), "measuring");
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end), "measuring");
    best = std::min(best, ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best / 1000;
}

}  // namespace

GpuBounds measure_bounds() {
  int gpu, multiprocessors;
  check(cudaGetDevice(&gpu), "asking for the GPU");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, gpu), "asking a GPU");
  const auto blocks = static_cast<unsigned>(multiprocessors);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  const size_t bytes = size_t{2} << 30;
  const DeviceMemory memory(bytes, "measuring"), sink(256, "measuring");
  check(cudaMemset(memory.at<void>(), 0x5a, bytes), "measuring");
  check(cudaDeviceSynchronize(), "measuring");
  const double reading = fastest(stream, [&] {
    launch(read_all, {dim3(2 * blocks), dim3(kReadThreads)}, stream, memory.at<const uint4>(), bytes / 16,
           sink.at<uint32_t>());
  });
  constexpr size_t kShared = kColumns * 256;
  const double multiplying = fastest(stream, [&] {
    launch(multiply_all, {dim3(blocks), dim3(128 * kWarpgroups), kShared}, stream, sink.at<float>());
  });
  cudaStreamDestroy(stream);
  return {static_cast<double>(bytes) / reading,
          2.0 * 64 * kColumns * 16 * kProducts * kWarpgroups * multiprocessors / multiplying};
}

}  // namespace niwaki::cuda
