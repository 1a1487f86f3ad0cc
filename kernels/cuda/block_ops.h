#pragma once
// What the threads of a block do together: sums, scans and sorting. All threads call them, and all get the
// result; the order of every sum is fixed.
#include <cstdint>

#include "cuda/primitives.h"

namespace niwaki::cuda {

/// For a block of 32 * Warps threads in one dimension. `scratch` is of one object in shared memory, free
/// again after each call.
template <int Warps>
struct BlockOps {
  static_assert(Warps > 0 && Warps <= 32);
  union Scratch {
    double numbers[Warps];
    unsigned long long words[Warps];
    int32_t integers[Warps];
  };
  Scratch& scratch;

  __device__ double sum(double x) const {
    return fold(x, scratch.numbers, 0.0, [](double v) {
      for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
      return v;
    });
  }
  __device__ int32_t sum(int32_t x) const {
    return fold(x, scratch.integers, 0, [](int32_t v) { return __reduce_add_sync(~0u, v); });
  }
  __device__ int32_t lowest(int32_t x) const {
    return fold(x, scratch.integers, INT32_MAX, [](int32_t v) { return __reduce_min_sync(~0u, v); });
  }
  __device__ int32_t highest(int32_t x) const {
    return fold(x, scratch.integers, INT32_MIN, [](int32_t v) { return __reduce_max_sync(~0u, v); });
  }
  __device__ unsigned long long highest(unsigned long long x) const {
    return fold(x, scratch.words, 0ull, [](unsigned long long v) {
      for (int distance = 16; distance > 0; distance /= 2) v = max(v, __shfl_xor_sync(~0u, v, distance));
      return v;
    });
  }

  /// The sum of x of all threads before this one.
  __device__ double sum_before(double x) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double through = x;
    for (int distance = 1; distance < 32; distance *= 2) {
      const double other = __shfl_up_sync(~0u, through, distance);
      if (lane >= distance) through += other;
    }
    if (lane == 31) scratch.numbers[warp] = through;
    const double before = __shfl_up_sync(~0u, through, 1);
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < warp; ++w) sum += scratch.numbers[w];
    __syncthreads();
    return lane == 0 ? sum : sum + before;
  }

  /// Sorts `count` words in shared memory, descending; there must be room for the next power of two.
  static __device__ void sort_descending(unsigned long long* words, int count) {
    int padded = 1;
    while (padded < count) padded *= 2;
    for (int i = count + threadIdx.x; i < padded; i += 32 * Warps) words[i] = 0;
    __syncthreads();
    // Bitonic sort (Batcher, 1968).
    for (int size = 2; size <= padded; size *= 2) {
      for (int distance = size / 2; distance > 0; distance /= 2) {
        for (int pair = threadIdx.x; pair < padded / 2; pair += 32 * Warps) {
          const int i = 2 * pair - (pair & (distance - 1)), j = i + distance;
          const unsigned long long a = words[i], b = words[j];
          if ((a < b) == ((i & size) == 0)) {
            words[i] = b;
            words[j] = a;
          }
        }
        __syncthreads();
      }
    }
  }

 private:
  /// Of the values that `within` makes of each warp's, what it makes of them.
  template <class T, class Within>
  __device__ T fold(T x, T* warps, T identity, Within within) const {
    const int lane = threadIdx.x % 32;
    x = within(x);
    if (lane == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = within(lane < Warps ? warps[lane] : identity);
    __syncthreads();
    return x;
  }
};

}  // namespace niwaki::cuda
