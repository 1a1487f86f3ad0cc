#pragma once
// What benchmarks of kernels on a GPU share.
#include <algorithm>
#include <vector>

#include "cuda/runtime.h"

namespace niwaki::cuda {

/// words[i] = what looks random, of the bits of `mask`, and `bits`.
static __global__ void fill(uint32_t* words, size_t count, uint32_t seed, uint32_t mask, uint32_t bits) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x = (x ^ x >> 15) * 2246822519u;
    words[i] = ((x ^ x >> 13) & mask) | bits;
  }
}

/// Seconds of one of the launches that a graph is made of.
template <class F>
double seconds_of(cudaStream_t stream, int launches, F&& f) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) f(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(exec, stream), "launch");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "launches");
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i > 1) times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3 / launches;
}

}  // namespace niwaki::cuda
