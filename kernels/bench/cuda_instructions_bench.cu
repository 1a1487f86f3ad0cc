// What the hardware allows: rates of matrix instructions, of reading memory, and what a kernel in a graph
// costs.
//   cuda_instructions_bench
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/primitives.h"

using namespace niwaki::cuda;

namespace {

constexpr int kLoops = 512;

template <class F>
float best_ms(cudaStream_t stream, int repeats, F&& f) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  float best = 1e30f;
  for (int i = 0; i < repeats; ++i) {
    check(cudaEventRecord(begin, stream), "record");
    f();
    check(cudaEventRecord(end, stream), "record");
    check(cudaEventSynchronize(end), "synchronize");
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    best = std::min(best, ms);
  }
  return best;
}

enum Kind { kU8S8, kF16, kBits128, kBits256, kLogic, kShuffle, kDp4a };

/// d += a b: m16n8k32, bytes without and with a sign, sums in int32.
__device__ void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, "
      "%2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ void mma_bits128(int32_t (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, "
      "%2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

__device__ void mma_bits256(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, "
      "%1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <Kind K>
__global__ void rate(long long* cycles, int* sink) {
  int32_t d[4][4]{};
  float f[4][4]{};
  uint32_t a[4] = {threadIdx.x, threadIdx.x * 3, threadIdx.x * 5, 7}, b[2] = {threadIdx.x, 11};
  __syncthreads();
  const long long begin = clock64();
  for (int i = 0; i < kLoops; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (K == kU8S8) mma_u8s8(d[j], a, b);
      if constexpr (K == kF16) mma_f16(f[j], a, b);
      if constexpr (K == kBits128) {
        const uint32_t half[2] = {a[0], a[1]};
        mma_bits128(d[j], half, b[0]);
      }
      if constexpr (K == kBits256) mma_bits256(d[j], a, b);
      if constexpr (K == kLogic)
        asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(d[j][0]) : "r"(a[1]), "r"(b[0]));
      if constexpr (K == kShuffle) d[j][0] = __shfl_xor_sync(~0u, d[j][0], 1);
      if constexpr (K == kDp4a) d[j][0] = __dp4a(static_cast<int>(a[0]), static_cast<int>(b[0]), d[j][0]);
    }
  }
  __syncthreads();
  const long long end = clock64();
  if (threadIdx.x == 0) cycles[blockIdx.x] = end - begin;
  int sum = 0;
  for (auto& x : d) sum += x[0] + x[1] + x[2] + x[3];
  for (auto& x : f) sum += static_cast<int>(x[0] + x[1] + x[2] + x[3]);
  sink[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <int N>
__global__ void wgmma_rate(long long* cycles, int* sink) {
  NIWAKI_DYNAMIC_SHARED(shared);
  float d[N / 2]{};
  uint32_t a[8][4];
  for (auto& x : a)
    for (auto& y : x) y = 0x3c003c00u + threadIdx.x;
  for (int i = threadIdx.x; i < N * 256 / 4; i += blockDim.x)
    reinterpret_cast<uint32_t*>(shared)[i] = 0x3c003c00u;
  fence_async();
  __syncthreads();
  const long long begin = clock64();
  for (int i = 0; i < kLoops / 8; ++i) {
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < 8; ++k) wgmma_f16<N>(d, a[k], describe_shared(shared + k * 256, 128, 2048), true);
    commit_wgmma();
    wait_wgmma<0>();
  }
  __syncthreads();
  const long long end = clock64();
  if (threadIdx.x == 0) cycles[blockIdx.x] = end - begin;
  float sum = 0;
  for (float x : d) sum += x;
  sink[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<int>(sum);
}

template <int Unroll>
__global__ void read_all(const uint4* from, size_t count, int* sink) {
  uint32_t sum = 0;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (Unroll - 1) * stride < count; i += Unroll * stride) {
    uint4 v[Unroll];
#pragma unroll
    for (int u = 0; u < Unroll; ++u) v[u] = load_streaming(from + i + u * stride);
#pragma unroll
    for (int u = 0; u < Unroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (sum == 0x12345678) *sink = static_cast<int>(sum);
}

template <bool Early>
__global__ void small(const float4* in, float4* out) {
  if constexpr (Early) {
    start_successor();
    wait_for_predecessor();
  }
  float4 v = in[threadIdx.x];
  v.x += 1;
  if (blockIdx.x == 0) out[threadIdx.x] = v;
}

__global__ void barriers(unsigned* counter, int count) {
  for (int i = 1; i <= count; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } while (seen < static_cast<unsigned>(i) * gridDim.x);
    }
    __syncthreads();
  }
}

__global__ void subnormals(float* out) {
  float d[4]{};
  const uint32_t a[4] = {0x00010001, 0x00010001, 0x00010001, 0x00010001},
                 b[2] = {0x64006400, 0x64006400};  // 2^-24, 1024
  mma_f16(d, a, b);
  out[threadIdx.x] = d[0];
}

template <Kind K>
void report_rate(const char* name, cudaStream_t stream, int blocks, long long* cycles, int* sink) {
  for (int warps : {4, 8, 16}) {
    launch(rate<K>, {dim3(blocks), dim3(32 * warps)}, stream, cycles, sink);
    launch(rate<K>, {dim3(blocks), dim3(32 * warps)}, stream, cycles, sink);
    long long taken;
    check(cudaStreamSynchronize(stream), "running");
    check(cudaMemcpy(&taken, cycles, sizeof taken, cudaMemcpyDeviceToHost), "copy");
    std::printf("%-22s %2d warps: %.3f warp instructions a cycle and SM\n", name, warps,
                4.0 * kLoops * warps / static_cast<double>(taken));
  }
}

template <int N>
void report_wgmma(cudaStream_t stream, int blocks, long long* cycles, int* sink) {
  allow_shared(wgmma_rate<N>, N * 256 + 4096);
  for (int groups : {1, 2, 3}) {
    launch(wgmma_rate<N>, {dim3(blocks), dim3(128 * groups), N * 256 + 4096}, stream, cycles, sink);
    launch(wgmma_rate<N>, {dim3(blocks), dim3(128 * groups), N * 256 + 4096}, stream, cycles, sink);
    long long taken;
    check(cudaStreamSynchronize(stream), "running");
    check(cudaMemcpy(&taken, cycles, sizeof taken, cudaMemcpyDeviceToHost), "copy");
    const double each = static_cast<double>(taken) / (kLoops * groups);
    std::printf("wgmma m64n%dk16, %d groups: %.1f cycles each, %.0f products a cycle and SM\n", N, groups,
                each, 64.0 * N * 16 / each);
  }
}

}  // namespace

int main() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device");
  int clock = 0, driver = 0;
  cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0);
  cudaDriverGetVersion(&driver);
  const int sms = properties.multiProcessorCount;
  std::printf("%s, %d SMs, %d MHz, L2 %d MB, driver %d\n", properties.name, sms, clock / 1000,
              properties.l2CacheSize >> 20, driver);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  long long* cycles;
  int* sink;
  check(cudaMalloc(&cycles, 4096 * sizeof *cycles), "cycles");
  check(cudaMalloc(&sink, 4096 * 1024 * sizeof *sink), "sink");

  float* f;
  check(cudaMalloc(&f, 128), "floats");
  launch(subnormals, {dim3(1), dim3(32)}, stream, f);
  float value;
  check(cudaStreamSynchronize(stream), "running");
  check(cudaMemcpy(&value, f, sizeof value, cudaMemcpyDeviceToHost), "copy");
  std::printf("sixteen times 2^-24 * 1024: %g (2^-10 is %g)\n", value, 1.0 / 1024);

  report_rate<kU8S8>("mma u8 s8 m16n8k32", stream, sms, cycles, sink);
  report_rate<kF16>("mma f16 m16n8k16", stream, sms, cycles, sink);
  report_rate<kBits128>("mma b1 m16n8k128", stream, sms, cycles, sink);
  report_rate<kBits256>("mma b1 m16n8k256", stream, sms, cycles, sink);
  report_rate<kLogic>("lop3", stream, sms, cycles, sink);
  report_rate<kShuffle>("shfl", stream, sms, cycles, sink);
  report_rate<kDp4a>("dp4a", stream, sms, cycles, sink);
  report_wgmma<8>(stream, sms, cycles, sink);
  report_wgmma<16>(stream, sms, cycles, sink);
  report_wgmma<32>(stream, sms, cycles, sink);
  report_wgmma<64>(stream, sms, cycles, sink);
  report_wgmma<128>(stream, sms, cycles, sink);

  const size_t bytes = size_t{2} << 30;
  uint4 *from, *to;
  check(cudaMalloc(&from, bytes), "memory");
  check(cudaMalloc(&to, bytes), "memory");
  check(cudaMemset(from, 0x5a, bytes), "memset");
  for (int per_sm : {1, 2, 4}) {
    for (int threads : {256, 512, 1024}) {
      if (per_sm * threads > 2048) continue;
      const float ms = best_ms(stream, 10, [&] {
        launch(read_all<8>, {dim3(sms * per_sm), dim3(threads)}, stream, static_cast<const uint4*>(from),
               bytes / 16, sink);
      });
      std::printf("reading, %d x %d threads: %.0f GB/s\n", per_sm, threads, bytes / ms * 1e-6);
    }
  }
  const float copy =
      best_ms(stream, 10, [&] { cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream); });
  std::printf("copying: %.0f GB/s, read and written\n", 2 * bytes / copy * 1e-6);
  for (size_t part : {size_t{2} << 20, size_t{13} << 20, size_t{40} << 20}) {  // as a layer's matrices are
    const float ms = best_ms(stream, 10, [&] {
      for (int i = 0; i < 20; ++i)
        launch(read_all<4>, {dim3(sms), dim3(512)}, stream,
               static_cast<const uint4*>(from) + (i * part % (bytes - part)) / 16, part / 16, sink);
    });
    std::printf("reading %zu MB at a time, 20 kernels: %.2f us each, %.0f GB/s\n", part >> 20, ms * 50,
                20.0 * part / ms * 1e-6);
  }

  for (int early = 0; early < 2; ++early) {
    for (int threads : {128, 512}) {
      constexpr int kKernels = 200;
      cudaGraph_t graph;
      cudaGraphExec_t exec;
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      for (int i = 0; i < kKernels; ++i) {
        if (early) {
          launch(small<true>, {dim3(sms), dim3(threads), 0, true}, stream,
                 reinterpret_cast<const float4*>(from), reinterpret_cast<float4*>(to));
        } else {
          launch(small<false>, {dim3(sms), dim3(threads)}, stream, reinterpret_cast<const float4*>(from),
                 reinterpret_cast<float4*>(to));
        }
      }
      check(cudaStreamEndCapture(stream, &graph), "capture");
      check(cudaGraphInstantiate(&exec, graph, 0), "graph");
      const float ms = best_ms(stream, 20, [&] { check(cudaGraphLaunch(exec, stream), "launch"); });
      std::printf("graph of %d small kernels, %d threads%s: %.2f us each\n", kKernels, threads,
                  early ? ", started early" : "", ms * 1000 / kKernels);
    }
  }
  for (int threads : {128, 512}) {
    const float ms = best_ms(stream, 5, [&] {
      check(cudaMemsetAsync(sink, 0, 4, stream), "memset");
      launch(barriers, {dim3(sms), dim3(threads)}, stream, reinterpret_cast<unsigned*>(sink), 1000);
    });
    std::printf("barrier of all blocks, %d threads: %.2f us\n", threads, ms);
  }
  check(cudaDeviceSynchronize(), "end");
  return 0;
}
