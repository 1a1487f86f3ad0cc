#pragma once
// The running block, for the emulator's own files.
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "cuda/emulated/threads.h"

namespace niwaki::cuda::emulated {

struct Copy {
  void* shared;
  const void* global;
  uint32_t bytes;
  uint64_t* barrier;  // of a bulk copy
  int group;          // of a thread's copy
};

/// A product of a warp's share of wgmma that runs.
struct Product {
  int n;
  uint32_t base, along_k, along_n;
  bool accumulate, done;
  int group;
  uint32_t a[32][4];
  float* d[32];
  float sums[32][128];  // by lane; before the product what it adds to
};

struct Warp;

struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;
  unsigned index = 0;
  uint3 thread{};
  Warp* warp = nullptr;
  bool ended = true;
  const char* waits = nullptr;  // for what
  Where where;
  uint64_t* barrier = nullptr;  // that it waits on, for the phase of this parity
  uint32_t parity = 0;
  std::vector<Copy> copies;
  int copy_group = 0;
};

struct Meeting {
  uint32_t mask, arrived;
  Combine combine;
  unsigned line;
  void* arguments[32];
};

struct Warp {
  unsigned index = 0;
  uint32_t ready = 0;
  std::vector<Meeting> meetings;
  std::deque<Product> products;
  int product_group = 0;
  bool fenced = false;
  uint64_t issued = 0;  // a hash of the products so far
};

struct BlockBarrier {
  int count = 0, arrived = 0, nonzero = 0;
  Votes result{};
  std::vector<Fiber*> waiting;
};

struct Block {
  const void* kernel = nullptr;
  const std::function<void()>* thread = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept for later blocks
  std::vector<std::unique_ptr<Warp>> warps;
  unsigned thread_count = 0, warp_count = 0, live = 0;
  unsigned turn = 0;  // the warp that goes on next
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  BlockBarrier barriers[16];
  std::vector<Copy> copies;  // bulk copies that run
  std::vector<Fiber*> barrier_waiters;
  Fiber* current = nullptr;
  void* host_stack_pointer = nullptr;
};
extern Block block;
extern Async async_mode;

/// Lets others run until the current fiber is made ready.
void suspend(const char* what, const Where& where);
void make_ready(Fiber& fiber);

/// Where nothing can go on: ends bulk copies that are waited for. Returns whether a fiber is ready now.
bool finish_bulk_copies();
/// For a block that ended: all that was begun must have been waited for.
void check_nothing_runs();
/// D = A B + sums, for a warp.
void multiply(Product& product);

}  // namespace niwaki::cuda::emulated
