#include "cuda/emulated/api.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/emulated/block.h"
#include "cuda/emulated/threads.h"

using Work = std::function<void()>;

namespace {

/// What was put into a stream and has not happened.
struct Queue {
  std::deque<Work> waiting;
  size_t done = 0;

  void catch_up(size_t end = SIZE_MAX) {
    while (!waiting.empty() && done < end) {
      const Work work = std::move(waiting.front());
      waiting.pop_front();
      ++done;
      work();
    }
  }
};

}  // namespace

struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};
struct CUstream_st {
  CUgraph_st* graph = nullptr;  // that it is captured into
  bool origin = false;          // the capture began here
  bool may_be_late = false;
  std::shared_ptr<Queue> queue = std::make_shared<Queue>();
};
struct CUevent_st {
  bool timed = true;
  CUgraph_st* graph = nullptr;
  std::shared_ptr<Queue> queue;  // that it was recorded in
  size_t place = 0;              // what is before it there, and itself
  std::chrono::steady_clock::time_point time{};
};

namespace {

constexpr size_t kSharedWithoutAsking = 48 << 10, kSharedMost = 227 << 10;

std::mutex mutex;
std::map<uintptr_t, size_t> allocations;  // of the device
std::map<uintptr_t, size_t> pinned;       // of the host
size_t in_use = 0;
size_t memory = [] {
  const char* value = std::getenv("NIWAKI_EMULATED_MEMORY");
  return value ? static_cast<size_t>(std::strtoull(value, nullptr, 10)) : size_t{8} << 30;
}();
std::map<const void*, size_t> shared_allowed;
std::vector<CUstream_st*> streams;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

/// The device's allocation that has the address, with all of `bytes` or not.
enum class Side { kHost, kDevice, kPastTheEnd };
Side side_of(const void* pointer, size_t bytes) {
  const std::lock_guard lock(mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return Side::kHost;
  const auto& [begin, size] = *--next;
  if (address >= begin + size) return Side::kHost;
  return address + bytes <= begin + size ? Side::kDevice : Side::kPastTheEnd;
}

bool may_copy(const void* to, const void* from, size_t to_bytes, size_t from_bytes, cudaMemcpyKind kind) {
  const Side target = side_of(to, to_bytes), source = side_of(from, from_bytes);
  if (target == Side::kPastTheEnd || source == Side::kPastTheEnd) return false;
  if (kind == cudaMemcpyDefault) return true;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  return (target == Side::kDevice) == to_device && (source == Side::kDevice) == from_device;
}

bool is_pageable(const void* pointer) {
  const std::lock_guard lock(mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (const auto* all : {&allocations, &pinned}) {
    const auto next = all->upper_bound(address);
    if (next != all->begin() && address < std::prev(next)->first + std::prev(next)->second) return false;
  }
  return true;
}

cudaError_t submit(cudaStream_t stream, Work work, bool may_be_late = true) {
  if (stream && stream->graph) {
    stream->graph->work.push_back(std::move(work));
  } else if (stream && stream->may_be_late && may_be_late &&
             niwaki::cuda::emulated::async_mode == niwaki::cuda::emulated::Async::kLate) {
    stream->queue->waiting.push_back(std::move(work));
  } else {
    if (stream) stream->queue->catch_up();
    work();
  }
  return cudaSuccess;
}

cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                      size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  if (width == 0 || height == 0) return cudaSuccess;
  if (height > 1 && (width > to_pitch || width > from_pitch)) return done(cudaErrorInvalidValue);
  if (!may_copy(to, from, to_pitch * (height - 1) + width, from_pitch * (height - 1) + width, kind)) {
    return done(cudaErrorInvalidValue);
  }
  const Work work = [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                   width);
    }
  };
  return submit(stream, work, !is_pageable(to) && !is_pageable(from));
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
      return "cudaErrorNotReady";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    default:
      return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "unknown error";
  }
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  return cudaDriverGetVersion(version);
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return done(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return done(cudaErrorInvalidDevice);
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated");
  properties->totalGlobalMem = memory;
  properties->sharedMemPerBlock = kSharedWithoutAsking;
  properties->sharedMemPerBlockOptin = kSharedMost;
  properties->sharedMemPerMultiprocessor = 228 << 10;
  properties->regsPerBlock = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 0x7fffffff;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->major = 9;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->l2CacheSize = 50 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      break;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      break;
    default:
      return done(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  std::vector<std::shared_ptr<Queue>> queues;
  {
    const std::lock_guard lock(mutex);
    for (const CUstream_st* stream : streams) queues.push_back(stream->queue);
  }
  for (const auto& queue : queues) queue->catch_up();
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kSharedMost) return done(cudaErrorInvalidValue);
  const std::lock_guard lock(mutex);
  shared_allowed[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const std::lock_guard lock(mutex);
  if (bytes > memory || in_use > memory - bytes || posix_memalign(pointer, 256, bytes) != 0) {
    *pointer = nullptr;
    return done(cudaErrorMemoryAllocation);
  }
  std::memset(*pointer, 0xff, bytes);
  allocations[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
  in_use += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  const std::lock_guard lock(mutex);
  const auto found = allocations.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == allocations.end()) return done(cudaErrorInvalidValue);
  in_use -= found->second;
  allocations.erase(found);
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(mutex);
  *free = in_use < memory ? memory - in_use : 0;
  *total = memory;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (posix_memalign(pointer, 256, bytes) != 0) return done(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xff, bytes);
  const std::lock_guard lock(mutex);
  pinned[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned flags) {
  return cudaHostAlloc(pointer, bytes, flags);
}
cudaError_t cudaFreeHost(void* pointer) {
  const std::lock_guard lock(mutex);
  pinned.erase(reinterpret_cast<uintptr_t>(pointer));
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return copy_rows(to, bytes, from, bytes, bytes, 1, kind, stream);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_rows(to, to_pitch, from, from_pitch, width, height, kind, stream);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
  return copy_rows(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (side_of(to, bytes) != Side::kDevice) return done(cudaErrorInvalidValue);
  return submit(stream, [=] { std::memset(to, value, bytes); });
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st;
  (*stream)->may_be_late = flags & cudaStreamNonBlocking;
  const std::lock_guard lock(mutex);
  streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  {
    const std::lock_guard lock(mutex);
    if (std::erase(streams, stream) == 0) return done(cudaErrorInvalidResourceHandle);
  }
  stream->queue->catch_up();
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (stream && stream->graph) return done(cudaErrorStreamCaptureUnsupported);
  if (stream) stream->queue->catch_up();
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return cudaStreamSynchronize(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  // A stream that waits for one that is captured is captured with it.
  if (stream && event->graph) stream->graph = event->graph;
  if (event->graph || !event->queue) return cudaSuccess;
  return submit(stream, [queue = event->queue, place = event->place] { queue->catch_up(place); });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new CUevent_st;
  (*event)->timed = !(flags & cudaEventDisableTiming);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event->queue) event->queue->catch_up(event->place);  // it sets the event's time
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->graph = stream ? stream->graph : nullptr;
  if (event->graph) return cudaSuccess;
  submit(stream, [event] { event->time = std::chrono::steady_clock::now(); });
  event->queue = stream ? stream->queue : nullptr;
  if (stream) event->place = stream->queue->done + stream->queue->waiting.size();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->graph) return done(cudaErrorStreamCaptureUnsupported);
  if (event->queue) event->queue->catch_up(event->place);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return cudaEventSynchronize(event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->timed || !end->timed) return done(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || stream->graph) return done(cudaErrorStreamCaptureUnsupported);
  stream->graph = new CUgraph_st;
  stream->origin = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (!stream || !stream->origin) return done(cudaErrorInvalidValue);
  *graph = stream->graph;
  stream->origin = false;
  const std::lock_guard lock(mutex);
  for (CUstream_st* other : streams) {
    if (other->graph == *graph) other->graph = nullptr;
  }
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream && stream->graph ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return submit(stream, [work = exec->work] {
    for (const Work& part : *work) part();
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

namespace niwaki::cuda::emulated {

void set_memory(size_t bytes) {
  const std::lock_guard lock(mutex);
  memory = bytes;
}
size_t memory_in_use() {
  const std::lock_guard lock(mutex);
  return in_use;
}

cudaError_t launch_grid(const void* kernel, dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
                        std::function<void()> thread) {
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
      !threads.x || !threads.y || !threads.z || threads.x > 1024 || threads.y > 1024 || threads.z > 64 ||
      threads.x * threads.y * threads.z > 1024) {
    return done(cudaErrorInvalidConfiguration);
  }
  size_t allowed = kSharedWithoutAsking;
  {
    const std::lock_guard lock(mutex);
    const auto found = shared_allowed.find(kernel);
    if (found != shared_allowed.end() && found->second > allowed) allowed = found->second;
  }
  if (shared > allowed) return done(cudaErrorInvalidValue);
  return submit(stream, [=, thread = std::move(thread)] { run_grid(kernel, grid, threads, shared, thread); });
}

}  // namespace niwaki::cuda::emulated
