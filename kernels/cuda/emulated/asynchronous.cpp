// Copies, barriers and products that run on after the call which begins them.
#include <cstdlib>
#include <cstring>

#include "cuda/emulated/block.h"
#include "cuda/emulated/primitives.h"

namespace niwaki::cuda::emulated {

Async async_mode = Async::kLate;
void set_async(Async async) {
  async_mode = async;
}

uint32_t shared_address(const void* pointer) {
  const auto offset = static_cast<const unsigned char*>(pointer) - block.shared;
  if (offset < 0 || static_cast<size_t>(offset) >= block.shared_bytes) {
    fail("the address is not in the dynamic shared memory, which is all whose addresses are known here");
  }
  return static_cast<uint32_t>(offset);
}

namespace {

void check_aligned(const void* shared, const void* global, const char* what) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) {
    fail(std::string(what) + ": addresses must be multiples of 16");
  }
}

void perform(const Copy& copy) {
  if (copy.global) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

// A barrier's 64 bits, from the lowest: bytes that are to come (32, signed), arrivals of the phase that are
// to come (14), arrivals of every phase (14), the phase's parity (1), and a mark of those that were begun.
struct Barrier {
  int32_t bytes;
  uint32_t pending, arrivals, parity;
};
constexpr uint64_t kMark = 2;

Barrier read(const uint64_t* word) {
  if (reinterpret_cast<uintptr_t>(word) % 8 != 0) fail("a barrier's address must be a multiple of 8");
  if (*word >> 61 != kMark) fail("the barrier was not initialized, or was written over");
  return {static_cast<int32_t>(*word), static_cast<uint32_t>(*word >> 32 & 0x3fff),
          static_cast<uint32_t>(*word >> 46 & 0x3fff), static_cast<uint32_t>(*word >> 60 & 1)};
}

void write(uint64_t* word, Barrier barrier) {
  if (barrier.bytes >= 1 << 20 || barrier.bytes <= -(1 << 20)) fail("a barrier counts less than 1 MiB");
  const bool ends = barrier.pending == 0 && barrier.bytes == 0;
  if (ends) {
    barrier.parity ^= 1;
    barrier.pending = barrier.arrivals;
  }
  *word = static_cast<uint32_t>(barrier.bytes) | static_cast<uint64_t>(barrier.pending) << 32 |
          static_cast<uint64_t>(barrier.arrivals) << 46 | static_cast<uint64_t>(barrier.parity) << 60 |
          kMark << 61;
  if (!ends) return;
  std::erase_if(block.barrier_waiters, [&](Fiber* fiber) {
    if (fiber->barrier != word || fiber->parity == barrier.parity) return false;
    fiber->barrier = nullptr;
    make_ready(*fiber);
    return true;
  });
}

void finish(const Copy& copy) {
  perform(copy);
  Barrier barrier = read(copy.barrier);
  barrier.bytes -= static_cast<int32_t>(copy.bytes);
  write(copy.barrier, barrier);
}

}  // namespace

void copy_async(void* shared, const void* global, bool valid) {
  check_aligned(shared, global, "copy_async");
  Fiber& fiber = *block.current;
  const Copy copy{shared, valid ? global : nullptr, 16, nullptr, fiber.copy_group};
  if (async_mode == Async::kEarly) {
    perform(copy);
  } else {
    fiber.copies.push_back(copy);
  }
}

void commit_copies() {
  ++block.current->copy_group;
}

void wait_copies(int pending) {
  Fiber& fiber = *block.current;
  size_t count = 0;  // the groups of a thread are in order
  while (count < fiber.copies.size() && fiber.copies[count].group < fiber.copy_group - pending)
    perform(fiber.copies[count++]);
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(count));
}

void init_barrier(uint64_t* barrier, uint32_t arrivals) {
  if (arrivals == 0 || arrivals > 1024) fail("init_barrier: a block has 1 .. 1,024 threads to arrive");
  write(barrier, {0, arrivals, arrivals, 0});
}

void arrive(uint64_t* word, uint32_t bytes) {
  Barrier barrier = read(word);
  if (barrier.pending == 0) fail("more arrivals at a barrier than its phase has");
  barrier.bytes += static_cast<int32_t>(bytes);
  --barrier.pending;
  write(word, barrier);
}

void wait(uint64_t* word, uint32_t parity, const Where& where) {
  if (read(word).parity != (parity & 1)) return;
  Fiber& fiber = *block.current;
  fiber.barrier = word;
  fiber.parity = parity & 1;
  block.barrier_waiters.push_back(&fiber);
  suspend("wait", where);
}

void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  check_aligned(shared, global, "copy_bulk");
  if (bytes % 16 != 0) fail("copy_bulk: bytes must be a multiple of 16");
  read(barrier);
  if (bytes > 0) shared_address(static_cast<unsigned char*>(shared) + bytes - 1);
  const Copy copy{shared, global, bytes, barrier, 0};
  if (async_mode == Async::kEarly) {
    finish(copy);
  } else {
    block.copies.push_back(copy);
  }
}

bool finish_bulk_copies() {
  for (const Fiber* fiber : block.barrier_waiters) {
    uint64_t* const barrier = fiber->barrier;
    std::vector<Copy> due;
    std::erase_if(block.copies, [&](const Copy& copy) {
      if (copy.barrier != barrier) return false;
      due.push_back(copy);
      return true;
    });
    if (due.empty()) continue;
    for (const Copy& copy : due) finish(copy);
    return true;
  }
  return false;
}

namespace {

constexpr uint32_t kRunning = 0x7fc0ffee;  // a NaN

void finish(Warp& warp) {
  Product product = warp.products.front();
  warp.products.pop_front();
  if (!product.done) multiply(product);
  for (int lane = 0; lane < 32; ++lane) {
    const size_t bytes = static_cast<size_t>(product.n) / 2 * sizeof(float);
    for (int i = 0; i < product.n / 2; ++i) {
      uint32_t pattern;
      std::memcpy(&pattern, product.d[lane] + i, sizeof pattern);
      if (pattern != kRunning)
        fail("wgmma: its sums were written before the wait, in lane " + std::to_string(lane));
    }
    Product* next = nullptr;
    for (Product& later : warp.products) {
      if (later.d[lane] == product.d[lane] && !next) next = &later;
    }
    // A product that runs on these sums goes on from them, if it has not already.
    if (!next || !next->done)
      std::memcpy(next ? next->sums[lane] : product.d[lane], product.sums[lane], bytes);
  }
}

uint64_t mix(uint64_t hash, uint64_t value) {
  return (hash ^ value) * 0x9e3779b97f4a7c15 + (hash >> 29);
}

}  // namespace

void begin_wgmma(void* const (&arguments)[32], uint32_t) {
  Warp& warp = *block.current->warp;
  if ((warp.index / 4 + 1) * 4 > block.warp_count) fail("wgmma: the warp is not one of four");
  if (!warp.fenced) fail("wgmma: no fence_wgmma since the last wait or the start");
  warp.products.emplace_back();
  Product& product = warp.products.back();
  const auto& first = *static_cast<const Wgmma*>(arguments[0]);
  product.n = first.n;
  const auto field = [&](int shift) { return static_cast<uint32_t>(first.b >> shift & 0x3fff) << 4; };
  product.base = field(0);
  product.along_k = field(16);
  product.along_n = field(32);
  product.accumulate = first.accumulate;
  product.done = false;
  product.group = warp.product_group;
  warp.issued = mix(mix(warp.issued, first.b), static_cast<uint64_t>(first.n) * 2 + first.accumulate);
  const size_t last =
      product.base + product.along_k + static_cast<size_t>(product.n / 8 - 1) * product.along_n + 128;
  if (last > block.shared_bytes) fail("wgmma: its matrix ends past the dynamic shared memory");
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Wgmma*>(arguments[lane]);
    if (mine.b != first.b || mine.accumulate != first.accumulate)
      fail("wgmma: lanes differ in b or accumulate");
    std::memcpy(product.a[lane], mine.a, sizeof product.a[lane]);
    product.d[lane] = mine.d;
    bool runs = false;
    for (const Product& other : warp.products) runs |= &other != &product && other.d[lane] == mine.d;
    if (runs) continue;
    std::memcpy(product.sums[lane], mine.d, static_cast<size_t>(product.n) / 2 * sizeof(float));
    for (int i = 0; i < product.n / 2; ++i) std::memcpy(mine.d + i, &kRunning, sizeof kRunning);
  }
  if (async_mode == Async::kEarly) {
    // What earlier ones add up to must be there.
    for (size_t i = 0; i + 1 < warp.products.size(); ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        if (warp.products[i].d[lane] == product.d[lane]) {
          std::memcpy(product.sums[lane], warp.products[i].sums[lane], sizeof product.sums[lane]);
        }
      }
    }
    multiply(product);
    product.done = true;
  }
}

void fence_wgmma(void* const (&)[32], uint32_t) {
  block.current->warp->fenced = true;
}

void commit_wgmma(void* const (&)[32], uint32_t) {
  ++block.current->warp->product_group;
}

void wait_wgmma(void* const (&arguments)[32], uint32_t) {
  Warp& warp = *block.current->warp;
  const int pending = *static_cast<const int*>(arguments[0]);
  while (!warp.products.empty() && warp.products.front().group < warp.product_group - pending) finish(warp);
  warp.fenced = false;
}

void check_nothing_runs() {
  if (!block.copies.empty()) fail("a bulk copy runs on after the end of its block");
  for (unsigned w = 0; w < block.warp_count; ++w) {
    const Warp& warp = *block.warps[w];
    if (!warp.products.empty()) fail("a wgmma runs on after the end of its block");
    if (warp.issued != block.warps[w / 4 * 4]->issued)
      fail("wgmma: the four warps of a group differ in what they multiply");
  }
}

}  // namespace niwaki::cuda::emulated
