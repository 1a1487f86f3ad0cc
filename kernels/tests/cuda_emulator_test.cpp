// The emulator that runs CUDA kernels on the CPU: what other tests of kernels rest on.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/primitives.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki::cuda;
using niwaki::test::Random;

namespace {

/// Host and device copies of an array.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : host(count), bytes_(count * sizeof(T)) { cudaMalloc(&device, bytes_); }
  explicit Array(std::vector<T> values) : Array(values.size()) {
    host = std::move(values);
    up();
  }
  ~Array() { cudaFree(device); }
  Array(const Array&) = delete;
  void up() { CHECK(cudaMemcpy(device, host.data(), bytes_, cudaMemcpyHostToDevice) == cudaSuccess); }
  std::vector<T>& down() {
    CHECK(cudaMemcpy(host.data(), device, bytes_, cudaMemcpyDeviceToHost) == cudaSuccess);
    return host;
  }
  T* device = nullptr;
  std::vector<T> host;

 private:
  size_t bytes_;
};

/// Runs the body under every order of threads and time of asynchronous work.
template <class Body>
void in_every_order(Body body) {
  for (const auto async : {emulated::Async::kLate, emulated::Async::kEarly}) {
    emulated::set_async(async);
    for (const auto order :
         {emulated::Order::kForward, emulated::Order::kReverse, emulated::Order::kShuffled}) {
      emulated::set_order(order, 7);
      body();
    }
  }
  emulated::set_async(emulated::Async::kLate);
  emulated::set_order(emulated::Order::kForward);
}

/// What a process that runs the body says before it fails; empty if it does not.
template <class Body>
std::string message_of(Body body) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string message;
  char part[512];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) message.append(part, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status != 0 ? message : "";
}
bool says(const std::string& message, const char* part) {
  const bool found = message.find(part) != std::string::npos;
  if (!found) std::printf("got: %s\n", message.c_str());
  return found;
}

std::vector<uint16_t> random_halves(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint16_t> halves(count);
  for (auto& half : halves) half = niwaki::float_to_half(random.normal());
  return halves;
}
float f(uint16_t half) {
  return niwaki::half_to_float(half);
}

__global__ void where_am_i(uint32_t* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] =
      threadIdx.x | threadIdx.y << 8 | threadIdx.z << 16 | blockIdx.x << 20 | blockIdx.y << 24;
}

TEST(indices) {
  Array<uint32_t> out(3 * 2 * 5 * 4 * 3);
  launch(where_am_i, {.grid = {3, 2}, .block = {5, 4, 3}}, nullptr, out.device);
  size_t i = 0;
  out.down();
  for (unsigned by = 0; by < 2; ++by) {
    for (unsigned bx = 0; bx < 3; ++bx) {
      for (unsigned z = 0; z < 3; ++z) {
        for (unsigned y = 0; y < 4; ++y) {
          for (unsigned x = 0; x < 5; ++x)
            CHECK(out.host[i++] == (x | y << 8 | z << 16 | bx << 20 | by << 24));
        }
      }
    }
  }
}

__global__ void collectives(const int* in, int* out) {
  const int lane = static_cast<int>(threadIdx.x), v = in[lane];
  int* mine = out + lane * 32;
  *mine++ = __shfl_sync(~0u, v, lane * 7);
  *mine++ = __shfl_sync(~0u, v, lane * 7, 8);
  *mine++ = __shfl_xor_sync(~0u, v, 5);
  *mine++ = __shfl_up_sync(~0u, v, 3);
  *mine++ = __shfl_up_sync(~0u, v, 3, 16);
  *mine++ = __shfl_down_sync(~0u, v, 3);
  *mine++ = __shfl_down_sync(~0u, v, 3, 16);
  *mine++ = static_cast<int>(__ballot_sync(~0u, v & 1));
  *mine++ = __any_sync(~0u, v == in[9]);
  *mine++ = __all_sync(~0u, v == in[9]);
  *mine++ = __reduce_add_sync(~0u, v);
  *mine++ = __reduce_min_sync(~0u, v);
  *mine++ = __reduce_max_sync(~0u, v);
  *mine++ = static_cast<int>(__reduce_max_sync(~0u, static_cast<unsigned>(v)));
  // Two halves of the warp apart, in branches.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  if (lane < 16) {
    *mine++ = __reduce_add_sync(half, v);
  } else {
    *mine++ = __reduce_add_sync(half, 2 * v);
  }
  const float shuffled = __shfl_xor_sync(half, static_cast<float>(v), 8);
  *mine++ = static_cast<int>(shuffled);
  const unsigned long long wide = __shfl_xor_sync(half, static_cast<unsigned long long>(v) << 32, 8);
  *mine++ = static_cast<int>(wide >> 32);
}

TEST(warp_collectives) {
  Random random(1);
  std::vector<int> in(32);
  for (int& v : in) v = static_cast<int>(random.below(2000)) - 1000;
  in_every_order([&] {
    Array<int> device(in), out(32 * 32);
    launch(collectives, {.grid = 1, .block = 32}, nullptr, device.device, out.device);
    out.down();
    int sum = 0, halves[2] = {}, low = in[0], high = in[0];
    unsigned ballot = 0, highest = 0;
    for (int i = 0; i < 32; ++i) {
      sum += in[i];
      halves[i / 16] += in[i];
      low = std::min(low, in[i]);
      high = std::max(high, in[i]);
      highest = std::max(highest, static_cast<unsigned>(in[i]));
      ballot |= static_cast<unsigned>(in[i] & 1) << i;
    }
    for (int i = 0; i < 32; ++i) {
      const int expected[] = {in[i * 7 % 32],
                              in[i / 8 * 8 + i * 7 % 8],
                              in[i ^ 5],
                              in[i >= 3 ? i - 3 : i],
                              in[i % 16 >= 3 ? i - 3 : i],
                              in[i + 3 < 32 ? i + 3 : i],
                              in[i % 16 + 3 < 16 ? i + 3 : i],
                              static_cast<int>(ballot),
                              1,
                              0,
                              sum,
                              low,
                              high,
                              static_cast<int>(highest),
                              i < 16 ? halves[0] : 2 * halves[1],
                              in[i ^ 8],
                              in[i ^ 8]};
      for (size_t j = 0; j < std::size(expected); ++j)
        CHECK(out.host[static_cast<size_t>(i) * 32 + j] == expected[j]);
    }
  });
}

__global__ void block_sums(int* out, int rounds) {
  __shared__ int values[96];
  const int thread = static_cast<int>(threadIdx.x);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    values[thread] = thread * round;
    __syncthreads();
    sum += values[(thread + 33) % 96];
    __syncthreads();
  }
  sum += 1000 * __syncthreads_count(thread < 5) + 10000 * __syncthreads_or(thread == 3) +
         20000 * __syncthreads_and(thread < 95);
  if (thread >= 32) {
    values[thread] = thread;
    sync_threads(3, 64);
    sum += values[thread < 64 ? thread + 32 : thread - 32];
  }
  out[thread] = sum;
  if (thread < 32) return;
  __syncthreads();  // those that have ended do not count
  atomicAdd(out + 96, 1);
}

TEST(block_barriers) {
  in_every_order([] {
    Array<int> out(std::vector<int>(97, 0));
    launch(block_sums, {.grid = 1, .block = 96}, nullptr, out.device, 4);
    out.down();
    for (int t = 0; t < 96; ++t) {
      int expected = (t + 33) % 96 * 6 + 5000 + 10000;
      if (t >= 32) expected += t < 64 ? t + 32 : t - 32;
      CHECK(out.host[static_cast<size_t>(t)] == expected);
    }
    CHECK(out.host[96] == 64);
  });
}

__global__ void multiply_f16(const uint16_t* a, const uint16_t* b,
                             float* d) {  // a[16][16], b[16][8], d[16][8]
  const unsigned lane = threadIdx.x, group = lane >> 2, position = lane & 3;
  const auto pair = [](uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; };
  uint32_t fa[4], fb[2];
  for (unsigned i = 0; i < 8; i += 2) {  // the manual's a0 .. a7
    const unsigned row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    const unsigned column = position * 2 + (i >= 4 ? 8 : 0);
    fa[i / 2] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
  }
  for (unsigned i = 0; i < 4; i += 2) {
    const unsigned row = position * 2 + (i >= 2 ? 8 : 0);
    fb[i / 2] = pair(b[row * 8 + group], b[(row + 1) * 8 + group]);
  }
  float sums[4] = {1, 2, 3, 4};
  mma_f16(sums, fa, fb);
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = i < 2 ? group : group + 8, column = position * 2 + (i & 1);
    d[row * 8 + column] = sums[i] - static_cast<float>(i + 1);
  }
}

TEST(mma_of_halves) {
  in_every_order([] {
    Array<uint16_t> a(random_halves(256, 2)), b(random_halves(128, 3));
    Array<float> d(128);
    launch(multiply_f16, {.grid = 1, .block = 32}, nullptr, a.device, b.device, d.device);
    d.down();
    for (size_t row = 0; row < 16; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        double sum = 0;
        for (size_t k = 0; k < 16; ++k) sum += double(f(a.host[row * 16 + k])) * f(b.host[k * 8 + column]);
        CHECK(std::fabs(d.host[row * 8 + column] - sum) < 1e-5);
      }
    }
  });
}

__global__ void multiply_bits(const uint32_t* a, const uint32_t* b,
                              int32_t* d) {  // a[16][128 bits], b[8][128 bits]
  const unsigned lane = threadIdx.x, group = lane >> 2, position = lane & 3;
  const uint32_t fa[2] = {a[group * 4 + position], a[(group + 8) * 4 + position]};
  int32_t sums[4];
  mma_bits(sums, fa, b[group * 4 + position]);
  for (unsigned i = 0; i < 4; ++i) d[(i < 2 ? group : group + 8) * 8 + position * 2 + (i & 1)] = sums[i];
}

TEST(mma_of_bits) {
  Random random(5);
  std::vector<uint32_t> x(16 * 4), y(8 * 4);
  for (auto& v : x) v = static_cast<uint32_t>(random.next());
  for (auto& v : y) v = static_cast<uint32_t>(random.next());
  Array<uint32_t> a(x), b(y);
  Array<int32_t> d(128);
  launch(multiply_bits, {.grid = 1, .block = 32}, nullptr, a.device, b.device, d.device);
  d.down();
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      int sum = 0;
      for (size_t k = 0; k < 128; ++k)
        sum += x[row * 4 + k / 32] >> k % 32 & y[column * 4 + k / 32] >> k % 32 & 1;
      CHECK(d.host[row * 8 + column] == sum);
    }
  }
}

__global__ void load(const uint16_t* in, uint32_t* out, bool transposed) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* rows = reinterpret_cast<uint16_t*>(shared);
  for (unsigned i = threadIdx.x; i < 256; i += 32) rows[i] = in[i];
  __syncwarp();
  uint32_t r[4];
  if (transposed) {
    load_matrices_transposed(r, rows + threadIdx.x * 8);
  } else {
    load_matrices(r, rows + threadIdx.x * 8);
  }
  for (unsigned i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

TEST(load_matrix) {
  std::vector<uint16_t> values(256);
  for (size_t i = 0; i < 256; ++i) values[i] = static_cast<uint16_t>(i * 77);
  Array<uint16_t> in(values);
  for (const bool transposed : {false, true}) {
    Array<uint32_t> out(128);
    launch(load, {.grid = 1, .block = 32, .shared = 512}, nullptr, in.device, out.device, transposed);
    out.down();
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        const size_t row = lane / 4, column = lane % 4 * 2;
        const size_t low = transposed ? column * 8 + row : row * 8 + column;
        const size_t high = transposed ? (column + 1) * 8 + row : row * 8 + column + 1;
        CHECK(out.host[lane * 4 + i] ==
              (values[i * 64 + low] | static_cast<uint32_t>(values[i * 64 + high]) << 16));
      }
    }
  }
}

// D[64][N] = A[64][32] B[32][N], as two steps of K; then D += A[..][0:16] B[0:16] again, waited for apart.
template <int N>
__global__ void multiply_group(const uint16_t* a, const uint16_t* b, float* d) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* matrix = reinterpret_cast<uint16_t*>(shared + 1024);
  constexpr unsigned along_n = 128 + 16, along_k = (N / 8) * along_n + 32;
  for (unsigned i = threadIdx.x; i < 32 * N; i += 128) {
    const unsigned k = i / N, n = i % N;
    matrix[k / 8 * (along_k / 2) + n / 8 * (along_n / 2) + n % 8 * 8 + k % 8] = b[k * N + n];
  }
  fence_async();
  __syncthreads();
  const unsigned warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, position = threadIdx.x % 4;
  uint32_t fa[2][4];
  for (unsigned step = 0; step < 2; ++step) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = warp * 16 + group + i % 2 * 8, column = step * 16 + position * 2 + i / 2 * 8;
      fa[step][i] = a[row * 32 + column] | static_cast<uint32_t>(a[row * 32 + column + 1]) << 16;
    }
  }
  float sums[N / 2];
  fence_wgmma();
  wgmma_f16<N>(sums, fa[0], describe_shared(matrix, along_k, along_n), false);
  wgmma_f16<N>(sums, fa[1],
               describe_shared(reinterpret_cast<uint8_t*>(matrix) + 2 * along_k, along_k, along_n), true);
  commit_wgmma();
  wgmma_f16<N>(sums, fa[0], describe_shared(matrix, along_k, along_n), true);
  commit_wgmma();
  wait_wgmma<1>();
  d[64 * N + threadIdx.x] = sums[0];  // too early
  wait_wgmma<0>();
  for (unsigned i = 0; i < N / 2; ++i) {
    const unsigned row = warp * 16 + group + (i % 4 >= 2 ? 8 : 0),
                   column = i / 4 * 8 + position * 2 + (i & 1);
    d[row * N + column] = sums[i];
  }
}

template <int N>
void check_group() {
  in_every_order([] {
    Array<uint16_t> a(random_halves(64 * 32, 6)), b(random_halves(32 * N, 7));
    Array<float> d(64 * N + 128);
    launch(multiply_group<N>, {.grid = 1, .block = 128, .shared = 1024 + 4 * (N / 8 * 144 + 32)}, nullptr,
           a.device, b.device, d.device);
    d.down();
    for (size_t row = 0; row < 64; ++row) {
      for (size_t column = 0; column < N; ++column) {
        double sum = 0;
        for (size_t k = 0; k < 48; ++k)
          sum += double(f(a.host[row * 32 + k % 32])) * f(b.host[k % 32 * N + column]);
        CHECK(std::fabs(d.host[row * N + column] - sum) < 1e-4);
      }
    }
    for (size_t i = 0; i < 128; ++i) CHECK(std::isnan(d.host[64 * N + i]));
  });
}

TEST(wgmma) {
  check_group<8>();
  check_group<16>();
  check_group<32>();
  check_group<64>();
  check_group<128>();
}

__global__ void thread_copies(const uint4* in, uint4* out, int early) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* rows = reinterpret_cast<uint4*>(shared);
  const unsigned t = threadIdx.x;
  copy_async(rows + t, in + t);
  commit_copies();
  copy_async(rows + 64 + t, in + 64 + t, t != 5);
  commit_copies();
  if (!early) wait_copies<1>();
  __syncthreads();
  out[t] = rows[63 - t];
  out[64 + t] = rows[64 + t];
  __syncthreads();
  wait_copies<0>();
  __syncthreads();
  out[128 + t] = rows[64 + 63 - t];
}

TEST(copies_of_threads) {
  std::vector<uint4> values(128);
  for (unsigned i = 0; i < 128; ++i) values[i] = make_uint4(i, i + 1, i + 2, i + 3);
  Array<uint4> in(values), out(192);
  launch(thread_copies, {.grid = 1, .block = 64, .shared = 2048}, nullptr, in.device, out.device, 0);
  out.down();
  for (unsigned t = 0; t < 64; ++t) {
    CHECK(out.host[t].x == 63 - t);
    CHECK(out.host[64 + t].x == 0xffffffff);  // not waited for
    CHECK(out.host[128 + t].w == (63 - t == 5 ? 0 : 64 + 63 - t + 3));
  }
  launch(thread_copies, {.grid = 1, .block = 64, .shared = 2048}, nullptr, in.device, out.device, 1);
  CHECK(out.down()[0].x == 0xffffffff);
}

// One warp feeds two stages with bulk copies, the others add them up.
constexpr unsigned kStages = 2, kStageBytes = 1024;
__global__ void pipeline(const uint32_t* in, uint32_t* out, int pieces) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* full = reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes);
  uint64_t* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (unsigned i = 0; i < kStages; ++i) {
      init_barrier(full + i, 1);
      init_barrier(empty + i, 64);
    }
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x >= 64) {
    if (threadIdx.x > 64) return;
    for (int i = 0; i < pieces; ++i) {
      const unsigned stage = static_cast<unsigned>(i) % kStages, turn = static_cast<unsigned>(i) / kStages;
      wait(empty + stage, (turn & 1) ^ 1);
      arrive_expecting(full + stage, kStageBytes);
      for (unsigned part = 0; part < 2; ++part) {
        copy_bulk(shared + stage * kStageBytes + part * 512, in + i * 256 + part * 128, 512, full + stage);
      }
    }
    return;
  }
  uint32_t sum = 0;
  for (int i = 0; i < pieces; ++i) {
    const unsigned stage = static_cast<unsigned>(i) % kStages, turn = static_cast<unsigned>(i) / kStages;
    wait(full + stage, turn & 1);
    const auto* values = reinterpret_cast<const uint32_t*>(shared + stage * kStageBytes);
    for (unsigned j = 0; j < 4; ++j) sum += values[j * 64 + threadIdx.x];
    arrive(empty + stage);
  }
  out[threadIdx.x] = sum;
}

TEST(bulk_pipeline) {
  Random random(8);
  std::vector<uint32_t> values(256 * 9);
  for (auto& v : values) v = static_cast<uint32_t>(random.next());
  in_every_order([&] {
    Array<uint32_t> in(values), out(64);
    launch(pipeline, {.grid = 1, .block = 96, .shared = kStages * kStageBytes + 16 * kStages}, nullptr,
           in.device, out.device, 9);
    out.down();
    for (size_t t = 0; t < 64; ++t) {
      uint32_t sum = 0;
      for (size_t i = t; i < values.size(); i += 64) sum += values[i];
      CHECK(out.host[t] == sum);
    }
  });
}

__global__ void add(int* values, int v) {
  values[threadIdx.x] += v;
}

TEST(graphs) {
  cudaStream_t stream, other;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  cudaEvent_t forked, joined;
  cudaEventCreateWithFlags(&forked, cudaEventDisableTiming);
  cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
  Array<int> values(32);
  std::vector<int> from(32, 5), to(32, -1);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMemcpyAsync(values.device, from.data(), 128, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  launch(add, {.grid = 1, .block = 32}, stream, values.device, 2);
  cudaEventRecord(forked, stream);
  cudaStreamWaitEvent(other, forked);
  launch(add, {.grid = 1, .block = 32}, other, values.device, 10);
  cudaEventRecord(joined, other);
  cudaStreamWaitEvent(stream, joined);
  CHECK(cudaMemcpyAsync(to.data(), values.device, 128, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(to[3] == -1);
  CHECK(values.down()[3] == -1);  // filled by cudaMalloc
  cudaGraphExec_t exec;
  CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  for (int i = 0; i < 2; ++i) {
    from[3] = 100 + i;
    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(to[2] == 17 && to[3] == 112 + i);
  }
  launch(add, {.grid = 1, .block = 32}, other, values.device, 1);
  CHECK(cudaStreamSynchronize(other) == cudaSuccess);
  CHECK(values.down()[2] == 18);
  cudaGraphExecDestroy(exec);
  cudaEventDestroy(forked);
  cudaEventDestroy(joined);
  cudaStreamDestroy(stream);
  cudaStreamDestroy(other);
}

TEST(late_streams) {
  for (const auto async : {emulated::Async::kLate, emulated::Async::kEarly}) {
    emulated::set_async(async);
    const bool late = async == emulated::Async::kLate;
    cudaStream_t stream, other, blocking;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
    cudaStreamCreate(&blocking);
    cudaEvent_t event;
    cudaEventCreate(&event);
    Array<int> values(32);
    int* host;
    CHECK(cudaMallocHost(&host, 128) == cudaSuccess);
    std::fill(host, host + 32, 1);
    CHECK(cudaMemcpyAsync(values.device, host, 128, cudaMemcpyHostToDevice, stream) == cudaSuccess);
    host[0] = 2;
    cudaEventRecord(event, stream);
    launch(add, {.grid = 1, .block = 32}, stream, values.device, 10);
    CHECK(values.down()[1] == (late ? -1 : 11));
    CHECK(cudaEventSynchronize(event) == cudaSuccess);
    CHECK(values.down()[0] == (late ? 2 : 11) && values.down()[1] == (late ? 1 : 11));
    // Of another stream, after all of the first that the event is after.
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(other, event);
    launch(add, {.grid = 1, .block = 32}, other, values.device, 100);
    CHECK(values.down()[1] == (late ? 1 : 111));
    CHECK(cudaStreamSynchronize(other) == cudaSuccess);
    CHECK(values.down()[1] == 111);
    // Copies of pageable memory, and other streams, are not late.
    int to[32];
    launch(add, {.grid = 1, .block = 32}, stream, values.device, 1000);
    CHECK(cudaMemcpyAsync(to, values.device, 128, cudaMemcpyDeviceToHost, stream) == cudaSuccess);
    CHECK(to[1] == 1111);
    launch(add, {.grid = 1, .block = 32}, blocking, values.device, 1);
    CHECK(values.down()[1] == 1112);
    launch(add, {.grid = 1, .block = 32}, stream, values.device, 1);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(values.down()[1] == 1113);
    cudaEventDestroy(event);
    cudaFreeHost(host);
    for (const cudaStream_t s : {stream, other, blocking}) cudaStreamDestroy(s);
  }
  emulated::set_async(emulated::Async::kLate);
}

TEST(memory) {
  const size_t before = emulated::memory_in_use();
  emulated::set_memory(before + 1000);
  void *a = nullptr, *b = nullptr;
  CHECK(cudaMalloc(&a, 600) == cudaSuccess);
  CHECK(cudaMalloc(&b, 600) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaSuccess);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  CHECK(free == 400 && total == before + 1000);
  std::vector<char> host(700);
  CHECK(cudaMemcpy(a, host.data(), 600, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaMemcpy(a, host.data(), 601, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host.data(), host.data(), 8, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaFree(host.data()) == cudaErrorInvalidValue);
  CHECK(cudaFree(a) == cudaSuccess);
  cudaGetLastError();
  emulated::set_memory(size_t{8} << 30);
  bool thrown = false;
  try {
    launch(load, {.grid = 1, .block = 32, .shared = 64 << 10}, nullptr, nullptr, nullptr, false);
  } catch (const std::exception&) {
    thrown = true;
  }
  CHECK(thrown);
}

TEST(halves) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const __half half = __ushort_as_half(static_cast<uint16_t>(bits));
    if (__hisnan(half)) continue;
    CHECK(__half_as_ushort(__float2half_rn(__half2float(half))) == bits);
  }
  // 1 + 2^-11 is half way, and goes to the even one; anything above goes up, even if float32 cannot hold it.
  CHECK(__half_as_ushort(__float2half_rn(1 + 0x1p-11f)) == 0x3c00);
  CHECK(__half_as_ushort(__half(1 + 0x1p-11 + 0x1p-40)) == 0x3c01);
  CHECK(__half_as_ushort(__half(-1 - 0x1p-11 - 0x1p-40)) == 0xbc01);
  CHECK(__half_as_ushort(__half(1 + 0x3p-11 - 0x1p-40)) == 0x3c01);
  CHECK(float(__hfma(__half(3.0f), __half(5.0f), __half(-0.5f))) == 14.5f);
  CHECK(__byte_perm(0x33221100, 0x77665544, 0x7531) == 0x77553311);
  CHECK(__brev(1) == 0x80000000u && __popc(0xf0f0) == 8 && __clz(1) == 31 && __ffs(8) == 4);
  CHECK(__dp4a(static_cast<int>(0xff02807f), 0x02030405, 7) == 7 + 0x7f * 5 - 128 * 4 + 2 * 3 - 2);
  CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(1e20f) == 0x7fffffff && __float2int_rn(NAN) == 0);
}

__global__ void missing_lane(int*) {
  if (threadIdx.x != 7) __shfl_sync(~0u, 1, 0);
}
__global__ void missing_arrival(int*) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) init_barrier(&barrier, 2);
  __syncthreads();
  if (threadIdx.x == 0) arrive(&barrier);
  wait(&barrier, 0);
}
__global__ void missing_barrier(int*) {
  if (threadIdx.x < 32) {
    sync_threads(1, 64);
  } else {
    __syncthreads();
  }
}
__global__ void past_the_end(int*) {
  NIWAKI_DYNAMIC_SHARED(shared);
  shared[64 + threadIdx.x] = 1;
}
__global__ void unwaited_copy(const int* in) {
  NIWAKI_DYNAMIC_SHARED(shared);
  auto* barrier = reinterpret_cast<uint64_t*>(shared);
  if (threadIdx.x > 0) return;
  init_barrier(barrier, 1);
  arrive_expecting(barrier, 32);
  copy_bulk(shared + 16, in, 32, barrier);
}
__global__ void unfenced(int*) {
  NIWAKI_DYNAMIC_SHARED(shared);
  float d[4] = {};
  const uint32_t a[4] = {};
  wgmma_f16<8>(d, a, describe_shared(shared, 128, 256), false);
}

TEST(errors_are_told) {
  Array<int> data(64);
  const auto run = [&](auto kernel, unsigned threads) {
    return message_of(
        [&] { launch(kernel, {.grid = 1, .block = threads, .shared = 64}, nullptr, data.device); });
  };
  std::string message = run(missing_lane, 32);
  CHECK(says(message, "no thread of the block can go on"));
  CHECK(says(message, "threads 0 .. 6: __shfl_sync"));
  CHECK(says(message, "threads 7 .. 7 have ended"));
  CHECK(says(message, "00000080 are not here"));
  CHECK(says(run(missing_arrival, 32), "threads 0 .. 31: wait"));
  message = run(missing_barrier, 64);
  CHECK(says(message, "threads 0 .. 31: sync_threads"));
  CHECK(says(message, "threads 32 .. 63: __syncthreads"));
  CHECK(says(run(unwaited_copy, 32), "bulk copy runs on"));
  CHECK(says(
      message_of([&] { launch(unfenced, {.grid = 1, .block = 128, .shared = 1024}, nullptr, data.device); }),
      "no fence_wgmma"));
#ifdef __SANITIZE_ADDRESS__
  CHECK(says(run(past_the_end, 32), "heap-buffer-overflow"));
#else
  CHECK(says(run(past_the_end, 32), "past the dynamic shared memory"));
#endif
}

}  // namespace

TEST_MAIN()
