#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "cuda/emulated/block.h"

#if defined(__SANITIZE_ADDRESS__)
#define NIWAKI_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NIWAKI_ASAN 1
#endif
#endif
#ifdef NIWAKI_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || defined(NIWAKI_UCONTEXT)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace niwaki::cuda::emulated {

Block block;

namespace {

#ifdef NIWAKI_ASAN
constexpr size_t kStack = 512 << 10, kCanary = 0;
#else
constexpr size_t kStack = 128 << 10, kCanary = 1024;
#endif
constexpr size_t kPage = 4096;
// Stacks begin at different lines of a page, for the first-level cache to hold those of many threads.
constexpr size_t kColors = 16, kColor = 192;
constexpr unsigned char kPoison = 0xff, kCanaryByte = 0xa5;

std::mutex running;
Order order = Order::kForward;
uint64_t random_state = 1;

uint64_t next_random() {
  uint64_t x = random_state += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

void fiber_main();

// A switch saves what a call preserves on the stack, and takes the other stack.
#if defined(__x86_64__) && !defined(NIWAKI_UCONTEXT)
extern "C" void niwaki_switch_stacks(void** save, void* load);
asm(R"(
.text
.p2align 4
.hidden niwaki_switch_stacks
.globl niwaki_switch_stacks
.type niwaki_switch_stacks, @function
niwaki_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size niwaki_switch_stacks, . - niwaki_switch_stacks
)");

void prepare(Fiber& fiber) {
  auto* top = reinterpret_cast<uint64_t*>(fiber.stack + kStack - fiber.index % kColors * kColor);
  *--top = 0;  // a return address that nothing returns to, and the alignment of a function's start
  *--top = reinterpret_cast<uint64_t>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber.stack_pointer = top;
}
#else
void niwaki_switch_stacks(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

void prepare(Fiber& fiber) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = kStack;
  makecontext(context, fiber_main, 0);
  fiber.stack_pointer = context;
}
#endif

#ifdef NIWAKI_ASAN
const void* host_stack = nullptr;
size_t host_stack_bytes = 0;
#endif

void switch_to(Fiber* from, Fiber* to) {
  block.current = to;
  if (to) threadIdx = to->thread;
  void** save = from ? &from->stack_pointer : &block.host_stack_pointer;
  void* load = to ? to->stack_pointer : block.host_stack_pointer;
#ifdef NIWAKI_ASAN
  void* fake = nullptr;
  if (to) {
    __sanitizer_start_switch_fiber(&fake, to->stack, kStack);
  } else {
    __sanitizer_start_switch_fiber(&fake, host_stack, host_stack_bytes);
  }
  niwaki_switch_stacks(save, load);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  niwaki_switch_stacks(save, load);
#endif
}

std::string name_of(const void* function) {
  Dl_info info{};
  if (dladdr(function, &info) && info.dli_sname) {
    int status = 0;
    char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    const std::string name = status == 0 ? demangled : info.dli_sname;
    std::free(demangled);
    return name;
  }
  char address[32];
  std::snprintf(address, sizeof address, "at %p", function);
  return address;
}

std::string describe(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line()) + " (" + where.function_name() +
         ")";
}

/// Threads that wait for the same at the same place share a line.
[[noreturn]] void report_deadlock() {
  std::string message = "no thread of the block can go on";
  for (unsigned i = 0; i < block.thread_count;) {
    const Fiber& first = *block.fibers[i];
    unsigned end = i + 1;
    const auto same = [&](const Fiber& other) {
      if (first.ended || other.ended) return first.ended && other.ended;
      return std::strcmp(first.waits, other.waits) == 0 && first.where.line() == other.where.line() &&
             std::strcmp(first.where.file_name(), other.where.file_name()) == 0 &&
             first.barrier == other.barrier && first.parity == other.parity;
    };
    while (end < block.thread_count && same(*block.fibers[end])) ++end;
    message += "\n  threads " + std::to_string(i) + " .. " + std::to_string(end - 1);
    if (first.ended) {
      message += " have ended";
    } else {
      message += std::string(": ") + first.waits + " at " + describe(first.where);
      if (first.barrier) {
        char barrier[100];
        std::snprintf(barrier, sizeof barrier, ", barrier at shared offset %td, parity %u, its state %016llx",
                      reinterpret_cast<unsigned char*>(first.barrier) - block.shared, first.parity,
                      static_cast<unsigned long long>(*first.barrier));
        message += barrier;
      }
      for (const Meeting& meeting : first.warp->meetings) {
        if (!(meeting.arrived >> (first.index % 32) & 1)) continue;
        char masks[80];
        std::snprintf(masks, sizeof masks, ", mask %08x, of which %08x are not here", meeting.mask,
                      meeting.mask & ~meeting.arrived);
        message += masks;
      }
    }
    i = end;
  }
  block.current = nullptr;
  fail(message);
}

/// Null when all have ended.
Fiber* pick() {
  unsigned& warp = block.turn;
  for (;;) {
    const unsigned count = block.warp_count;
    if (order == Order::kShuffled) warp = static_cast<unsigned>(next_random() % count);
    for (unsigned i = 0; i < count; ++i) {
      const uint32_t ready = block.warps[warp]->ready;
      if (ready) {
        int lane = std::countr_zero(ready);
        if (order == Order::kReverse) {
          lane = 31 - std::countl_zero(ready);
        } else if (order == Order::kShuffled) {
          const auto turn = static_cast<int>(next_random() % 32);
          lane = (std::countr_zero(std::rotr(ready, turn)) + turn) % 32;
        }
        block.warps[warp]->ready &= ~(1u << lane);
        return block.fibers[warp * 32 + static_cast<unsigned>(lane)].get();
      }
      warp = order == Order::kReverse ? (warp + count - 1) % count : (warp + 1) % count;
    }
    if (block.live == 0) return nullptr;
    if (!finish_bulk_copies()) report_deadlock();
  }
}

void release_barrier(BlockBarrier& barrier) {
  barrier.result = {barrier.arrived, barrier.nonzero};
  barrier.arrived = barrier.nonzero = barrier.count = 0;
  for (Fiber* fiber : barrier.waiting) make_ready(*fiber);
  barrier.waiting.clear();
}

void fiber_main() {
#ifdef NIWAKI_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    Fiber& fiber = *block.current;
    (*block.thread)();
    fiber.ended = true;
    --block.live;
    BlockBarrier& all = block.barriers[0];
    if (all.arrived > 0 && all.arrived == static_cast<int>(block.live)) release_barrier(all);
    switch_to(&fiber, pick());
  }
}

Fiber& fiber_of(unsigned index) {
  while (block.fibers.size() <= index) {
    auto fiber = std::make_unique<Fiber>();
    fiber->index = static_cast<unsigned>(block.fibers.size());
    void* memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0)
      fail("no memory for the stack of a thread");
    fiber->stack = static_cast<unsigned char*>(memory) + kPage;
    prepare(*fiber);
    if (fiber->index % 32 == 0) {
      block.warps.push_back(std::make_unique<Warp>());
      block.warps.back()->index = fiber->index / 32;
    }
    fiber->warp = block.warps.back().get();
    block.fibers.push_back(std::move(fiber));
  }
  return *block.fibers[index];
}

void run_block() {
  for (unsigned i = 0; i < block.thread_count; ++i) {
    Fiber& fiber = fiber_of(i);
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    fiber.ended = false;
    fiber.copies.clear();
    fiber.copy_group = 0;
    make_ready(fiber);
  }
  block.live = block.thread_count;
  block.turn = order == Order::kReverse ? block.warp_count - 1 : 0;
  for (unsigned w = 0; w < block.warp_count; ++w) {
    Warp& warp = *block.warps[w];
    warp.product_group = 0;
    warp.fenced = false;
    warp.issued = 0;
  }
  for (BlockBarrier& barrier : block.barriers) barrier = {};
  if (block.shared_bytes > 0) std::memset(block.shared, kPoison, block.shared_bytes);
  switch_to(nullptr, pick());
  check_nothing_runs();
  for (size_t i = 0; i < kCanary; ++i) {
    if (block.shared[block.shared_bytes + i] != kCanaryByte) {
      fail("a thread wrote past the dynamic shared memory, at offset " +
           std::to_string(block.shared_bytes + i));
    }
  }
}

/// Settings of the environment, read once.
const bool configured = [] {
  if (const char* value = std::getenv("NIWAKI_EMULATED_ORDER")) {
    if (std::strcmp(value, "forward") == 0) {
      set_order(Order::kForward);
    } else if (std::strcmp(value, "reverse") == 0) {
      set_order(Order::kReverse);
    } else {
      set_order(Order::kShuffled, std::strtoull(value, nullptr, 10));
    }
  }
  if (const char* value = std::getenv("NIWAKI_EMULATED_ASYNC")) {
    set_async(std::strcmp(value, "early") == 0 ? Async::kEarly : Async::kLate);
  }
  return true;
}();

}  // namespace

void set_order(Order value, uint64_t seed) {
  order = value;
  random_state = seed;
}

void fail(const std::string& message) {
  std::fflush(stdout);
  if (block.kernel) {
    std::fprintf(stderr, "emulated CUDA: kernel %s, block (%u, %u, %u) of (%u, %u, %u)",
                 name_of(block.kernel).c_str(), blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x, gridDim.y,
                 gridDim.z);
    if (block.current) {
      std::fprintf(stderr, ", thread %u (%u, %u, %u)", block.current->index, threadIdx.x, threadIdx.y,
                   threadIdx.z);
    }
    std::fprintf(stderr, " of (%u, %u, %u): %s\n", blockDim.x, blockDim.y, blockDim.z, message.c_str());
  } else {
    std::fprintf(stderr, "emulated CUDA: %s\n", message.c_str());
  }
  std::fflush(stderr);
  std::abort();
}

void make_ready(Fiber& fiber) {
  fiber.warp->ready |= 1u << fiber.index % 32;
}

void suspend(const char* what, const Where& where) {
  Fiber* fiber = block.current;
  fiber->waits = what;
  fiber->where = where;
  Fiber* next = pick();
  if (next != fiber) switch_to(fiber, next);
}

unsigned lane() {
  return block.current->index % 32;
}

unsigned char* dynamic_shared() {
  return block.shared;
}

void meet_warp(uint32_t mask, const char* what, Combine combine, void* argument, const Where& where) {
  Fiber& fiber = *block.current;
  Warp& warp = *fiber.warp;
  const unsigned lane = fiber.index % 32;
  if (!(mask >> lane & 1))
    fail(std::string(what) + ": its mask does not name the calling lane; " + describe(where));
  Meeting* meeting = nullptr;
  for (Meeting& other : warp.meetings) {
    if (other.mask == mask && other.combine == combine && other.line == where.line()) meeting = &other;
  }
  if (!meeting) {
    warp.meetings.push_back({mask, 0, combine, where.line(), {}});
    meeting = &warp.meetings.back();
  }
  meeting->arrived |= 1u << lane;
  meeting->arguments[lane] = argument;
  if (meeting->arrived != mask) {
    suspend(what, where);
    return;
  }
  fiber.waits = what;
  fiber.where = where;
  if (combine) combine(meeting->arguments, mask);
  warp.ready |= mask & ~(1u << lane);
  *meeting = warp.meetings.back();
  warp.meetings.pop_back();
}

Votes meet_block(int id, int count, bool vote, const char* what, const Where& where) {
  BlockBarrier& barrier = block.barriers[id];
  if (barrier.arrived > 0 && barrier.count != count) {
    fail("threads come to barrier " + std::to_string(id) + " with different counts; " + describe(where));
  }
  barrier.count = count;
  ++barrier.arrived;
  barrier.nonzero += vote;
  if (barrier.arrived == (count ? count : static_cast<int>(block.live))) {
    release_barrier(barrier);
  } else {
    barrier.waiting.push_back(block.current);
    suspend(what, where);
  }
  return barrier.result;
}

void run_grid(const void* kernel, dim3 grid, dim3 threads, size_t shared,
              const std::function<void()>& thread) {
  const std::lock_guard lock(running);
  block.kernel = kernel;
  block.thread = &thread;
  block.thread_count = threads.x * threads.y * threads.z;
  block.warp_count = (block.thread_count + 31) / 32;
  block.shared_bytes = shared;
  gridDim = grid;
  blockDim = threads;
  void* memory = nullptr;
  if (shared + kCanary > 0 && posix_memalign(&memory, 1024, shared + kCanary) != 0) fail("no shared memory");
  block.shared = static_cast<unsigned char*>(memory);
  if (kCanary > 0) std::memset(block.shared + shared, kCanaryByte, kCanary);
#ifdef NIWAKI_ASAN
  // Asks for the bounds of this stack by a switch to itself.
  void* fake = nullptr;
  const void* own = nullptr;
  size_t own_bytes = 0;
  char here = 0;
  __sanitizer_start_switch_fiber(&fake, &here, 1);
  __sanitizer_finish_switch_fiber(fake, &own, &own_bytes);
  __sanitizer_start_switch_fiber(&fake, own, own_bytes);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  host_stack = own;
  host_stack_bytes = own_bytes;
#endif
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
    }
  }
  std::free(memory);
  block.shared = nullptr;
  block.kernel = nullptr;
}

}  // namespace niwaki::cuda::emulated
