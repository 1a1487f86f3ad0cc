#include "cpu/thread_pool.h"

#include <pthread.h>

#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <utility>

namespace niwaki {
namespace {

constexpr uint32_t kJoined = 0xff;  // a pool has at most 255 followers
constexpr uint32_t kClosed = 0x100;
constexpr uint32_t kEpoch = 0x200;  // one step of the epoch; wrapping is harmless
constexpr uint32_t kCalls = 256;    // of Worker::each in a phase
/// Bytes that a waiting thread asks for: what memory gives in the time that threads wait for each other; and
/// lines of them at once.
constexpr size_t kAhead = 64 << 10;
constexpr int kAheadLines = 8;
constexpr auto kSpin = std::chrono::microseconds(40);
constexpr auto kLinger = std::chrono::milliseconds(1);  // more than the way from a step to the next

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits for `ready` a while longer, and lets every other thread go first; false if it did not come.
template <class Ready>
bool linger(Ready&& ready) {
  const auto end = std::chrono::steady_clock::now() + kLinger;
  do {
    if (ready()) return true;
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

void name_thread(int index) {
  char name[16];
  std::snprintf(name, sizeof name, "niwaki-%d", index);
#if defined(__APPLE__)
  pthread_setname_np(name);
#else
  pthread_setname_np(pthread_self(), name);
#endif
}

}  // namespace

void ThreadPool::Ahead::begin(const NextRead& next) {
  if (next.whole == next_.whole && next.stream == next_.stream) return;
  next_ = next;
  asked_ = 0;
}

void ThreadPool::Ahead::ask() {
  for (int i = 0; i < kAheadLines; ++i, asked_ += 64) {
    if (asked_ < next_.whole_bytes) {
      __builtin_prefetch(static_cast<const char*>(next_.whole) + asked_, 0, 2);
    } else if (next_.stream != nullptr && asked_ - next_.whole_bytes < kAhead) {
      __builtin_prefetch(static_cast<const char*>(next_.stream) + (asked_ - next_.whole_bytes), 0, 2);
    } else {
      return;
    }
  }
}

/// Waits for a moment for `ready`; false if it did not come.
template <class Ready>
bool ThreadPool::spin(Ahead& ahead, Ready&& ready) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    ahead.ask();
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// A thread goes on to the next call only when all pieces of all shares are taken, so whoever finds a later
// call than its own in a share has nothing left to take. An earlier one is as good as an untouched share.
Worker::Pieces Worker::take(Taken& taken, uint32_t serial, int64_t size, int64_t most) {
  uint64_t word = taken.word.load(std::memory_order_relaxed);
  for (;;) {
    const auto current = static_cast<uint32_t>(word >> 32);
    const int64_t first = current < serial ? 0 : static_cast<int64_t>(word & UINT32_MAX);
    if (current > serial || first >= size) return {size, 0};
    const int64_t count = std::clamp<int64_t>((size - first) / 2, 1, most);
    const uint64_t next = uint64_t{serial} << 32 | static_cast<uint64_t>(first + count);
    if (taken.word.compare_exchange_weak(word, next, std::memory_order_relaxed)) return {first, count};
  }
}

ThreadPool::ThreadPool(int threads) : state_(kClosed), taken_(static_cast<size_t>(std::max(threads, 0))) {
  if (threads < 1 || threads > 256) throw std::invalid_argument("a thread pool has 1 to 256 threads");
  threads_.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, i] {
        name_thread(i);
        i == 0 ? lead() : follow(i);
      });
    }
  } catch (...) {
    // The system refused a thread: end those that run before giving up.
    stopping_ = true;
    {
      std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    state_.fetch_add(kEpoch);
    state_.notify_all();
    for (auto& thread : threads_) thread.join();
    throw;
  }
}

void ThreadPool::end() {
  if (!threads_[0].joinable()) return;
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  threads_[0].join();
  stopping_ = true;
  state_.fetch_add(kEpoch);
  state_.notify_all();
  for (size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
}

void ThreadPool::submit(std::function<void()> job) {
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void ThreadPool::lead() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return ending_ || !queue_.empty(); });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job();
  }
}

void ThreadPool::enter(const Phase& phase, int index, Ahead& ahead) {
  Worker worker(index, threads(), taken_.data(), serial_);
  try {
    phase.call(phase.context, worker);
    ahead.begin(next_.context == nullptr ? NextRead{} : next_.read(next_.context, worker));
  } catch (...) {
    std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void ThreadPool::run(Phase phase) {
  serial_ += kCalls;
  if (serial_ == 0) {  // begins again: no share may hold a later number
    for (Worker::Taken& taken : taken_) taken.word.store(0, std::memory_order_relaxed);
  }
  if (threads() > 1) {
    phase_ = phase;
    left_.store(0, std::memory_order_relaxed);
    // Nobody but the leader changes a closed word, so a plain store opens the next epoch.
    const uint32_t epoch = (state_.load(std::memory_order_relaxed) & ~(kEpoch - 1)) + kEpoch;
    state_.store(epoch, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) state_.notify_all();
  }
  enter(phase, 0, leaders_ahead_);
  if (threads() > 1) {
    const uint32_t joined = state_.fetch_or(kClosed, std::memory_order_acq_rel) & kJoined;
    const auto all_left = [&] { return left_.load(std::memory_order_acquire) == joined; };
    if (!spin(leaders_ahead_, all_left)) {
      leader_sleeps_.store(true, std::memory_order_seq_cst);
      for (uint32_t left; (left = left_.load(std::memory_order_seq_cst)) != joined;) left_.wait(left);
      leader_sleeps_.store(false, std::memory_order_relaxed);
    }
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::follow(int index) {
  uint32_t done = 0;  // the epoch not to join again
  Ahead ahead;
  for (;;) {
    uint32_t state = 0;
    const auto open = [&] {
      state = state_.load(std::memory_order_seq_cst);
      return stopping_.load(std::memory_order_relaxed) ||
             (!(state & kClosed) && (state & ~(kEpoch - 1)) != done);
    };
    if (!spin(ahead, open) && !linger(open)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      while (!open()) state_.wait(state, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    if (stopping_.load(std::memory_order_acquire)) return;
    if (!state_.compare_exchange_strong(state, state + 1, std::memory_order_acq_rel)) continue;
    done = state & ~(kEpoch - 1);
    enter(phase_, index, ahead);
    left_.fetch_add(1, std::memory_order_seq_cst);
    if (leader_sleeps_.load(std::memory_order_seq_cst)) left_.notify_one();
  }
}

}  // namespace niwaki
