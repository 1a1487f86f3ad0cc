#pragma once
// Threads of a block: each is a fiber, and runs until it must wait for others.
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <type_traits>

#include "cuda/emulated/types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace niwaki::cuda::emulated {

using Where = std::source_location;

/// Which thread goes on first where several can: kForward the lowest, kReverse the highest, kShuffled any (by
/// the seed). Also set by NIWAKI_EMULATED_ORDER: forward, reverse or a seed.
enum class Order { kForward, kReverse, kShuffled };
void set_order(Order order, uint64_t seed = 1);

/// When asynchronous copies and products happen: kLate when they are waited for, kEarly when they are begun.
/// Results of products are written at the wait in both. Also set by NIWAKI_EMULATED_ASYNC: late or early.
enum class Async { kLate, kEarly };
void set_async(Async async);

/// Runs all blocks on this thread, one grid at a time in the process.
void run_grid(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);

/// Ends the process with a message that names the running kernel, block and thread.
[[noreturn]] void fail(const std::string& message);

unsigned lane();
unsigned char* dynamic_shared();

/// Waits until all lanes of `mask` are here, at this `where`. The last to come calls combine(arguments by
/// lane, mask).
using Combine = void (*)(void* const (&arguments)[32], uint32_t mask);
void meet_warp(uint32_t mask, const char* what, Combine combine, void* argument, const Where& where);

/// What the threads of a barrier have brought: how many, and how many with a value that is not zero.
struct Votes {
  int threads, nonzero;
};
/// `count` 0: all threads that have not ended.
Votes meet_block(int barrier, int count, bool vote, const char* what, const Where& where);

template <class Value>
struct Exchange {
  Value value, result;
  unsigned source;
};
template <class Value>
void exchange(void* const (&arguments)[32], uint32_t mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& mine = *static_cast<Exchange<Value>*>(arguments[lane]);
    if (!(mask >> mine.source & 1)) {
      fail("lane " + std::to_string(lane) + " shuffles from lane " + std::to_string(mine.source) +
           ", which the mask does not name");
    }
    mine.result = static_cast<Exchange<Value>*>(arguments[mine.source])->value;
  }
}
template <class Value>
Value shuffle(uint32_t mask, Value value, unsigned source, const char* what, const Where& where) {
  static_assert(std::is_trivially_copyable_v<Value>);
  Exchange<Value> mine{value, value, source};
  meet_warp(mask, what, exchange<Value>, &mine, where);
  return mine.result;
}

template <class Value, class Operation>
void fold(void* const (&arguments)[32], uint32_t mask) {
  Value total{};
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Value value = *static_cast<Value*>(arguments[lane]);
    total = first ? value : Operation()(total, value);
    first = false;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<Value*>(arguments[lane]) = total;
  }
}
template <class Operation, class Value>
Value reduce(uint32_t mask, Value value, const char* what, const Where& where) {
  meet_warp(mask, what, fold<Value, Operation>, &value, where);
  return value;
}

struct Lower {
  template <class Value>
  Value operator()(Value a, Value b) const {
    return b < a ? b : a;
  }
};
struct Higher {
  template <class Value>
  Value operator()(Value a, Value b) const {
    return a < b ? b : a;
  }
};

}  // namespace niwaki::cuda::emulated

#define NIWAKI_WHERE const ::niwaki::cuda::emulated::Where& where = ::niwaki::cuda::emulated::Where::current()

inline void __syncthreads(NIWAKI_WHERE) {
  niwaki::cuda::emulated::meet_block(0, 0, false, "__syncthreads", where);
}
inline int __syncthreads_or(int value, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::meet_block(0, 0, value != 0, "__syncthreads_or", where).nonzero > 0;
}
inline int __syncthreads_and(int value, NIWAKI_WHERE) {
  const auto votes = niwaki::cuda::emulated::meet_block(0, 0, value != 0, "__syncthreads_and", where);
  return votes.nonzero == votes.threads;
}
inline int __syncthreads_count(int value, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::meet_block(0, 0, value != 0, "__syncthreads_count", where).nonzero;
}
inline void __syncwarp(unsigned mask = ~0u, NIWAKI_WHERE) {
  niwaki::cuda::emulated::meet_warp(mask, "__syncwarp", nullptr, nullptr, where);
}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32, NIWAKI_WHERE) {
  const unsigned lane = niwaki::cuda::emulated::lane(), within = static_cast<unsigned>(width) - 1;
  return niwaki::cuda::emulated::shuffle(
      mask, value, (lane & ~within) | (static_cast<unsigned>(source) & within), "__shfl_sync", where);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance, int width = 32, NIWAKI_WHERE) {
  const unsigned lane = niwaki::cuda::emulated::lane(), source = lane ^ static_cast<unsigned>(distance);
  const unsigned end =
      (lane | (static_cast<unsigned>(width) - 1)) + 1;  // lanes of lower segments may be read
  return niwaki::cuda::emulated::shuffle(mask, value, source < end ? source : lane, "__shfl_xor_sync", where);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned distance, int width = 32, NIWAKI_WHERE) {
  const unsigned lane = niwaki::cuda::emulated::lane(), position = lane & (static_cast<unsigned>(width) - 1);
  return niwaki::cuda::emulated::shuffle(mask, value, position >= distance ? lane - distance : lane,
                                         "__shfl_up_sync", where);
}
template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned distance, int width = 32, NIWAKI_WHERE) {
  const unsigned lane = niwaki::cuda::emulated::lane(), position = lane & (static_cast<unsigned>(width) - 1);
  return niwaki::cuda::emulated::shuffle(
      mask, value, position + distance < static_cast<unsigned>(width) ? lane + distance : lane,
      "__shfl_down_sync", where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, NIWAKI_WHERE) {
  const unsigned mine = predicate ? 1u << niwaki::cuda::emulated::lane() : 0;
  return niwaki::cuda::emulated::reduce<std::bit_or<>>(mask, mine, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int predicate, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::reduce<std::bit_or<>>(mask, unsigned(predicate != 0), "__any_sync", where) !=
         0;
}
inline int __all_sync(unsigned mask, int predicate, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::reduce<std::bit_and<>>(mask, unsigned(predicate != 0), "__all_sync",
                                                        where) != 0;
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::reduce<std::plus<>>(mask, value, "__reduce_add_sync", where);
}
inline int __reduce_add_sync(unsigned mask, int value, NIWAKI_WHERE) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value), where));
}
template <class Value>
Value __reduce_min_sync(unsigned mask, Value value, NIWAKI_WHERE) {
  static_assert(std::is_same_v<Value, int> || std::is_same_v<Value, unsigned>);
  return niwaki::cuda::emulated::reduce<niwaki::cuda::emulated::Lower>(mask, value, "__reduce_min_sync",
                                                                       where);
}
template <class Value>
Value __reduce_max_sync(unsigned mask, Value value, NIWAKI_WHERE) {
  static_assert(std::is_same_v<Value, int> || std::is_same_v<Value, unsigned>);
  return niwaki::cuda::emulated::reduce<niwaki::cuda::emulated::Higher>(mask, value, "__reduce_max_sync",
                                                                        where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::reduce<std::bit_or<>>(mask, value, "__reduce_or_sync", where);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, NIWAKI_WHERE) {
  return niwaki::cuda::emulated::reduce<std::bit_and<>>(mask, value, "__reduce_and_sync", where);
}
[[noreturn]] inline void __trap() {
  niwaki::cuda::emulated::fail("__trap");
}
