#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace niwaki {

class ThreadPool;

/// Items that a thread takes at a time: `most` where many are left, fewer and fewer towards the end, `least`
/// in the end, so that threads end together. A number alone is always taken as it is.
struct Grain {
  int64_t least, most;
  Grain(int64_t items) : least(items), most(items) {}  // NOLINT(google-explicit-constructor)
  Grain(int64_t least_items, int64_t most_items) : least(least_items), most(most_items) {}
};

/// One thread's view of a parallel phase.
class Worker {
 public:
  /// 0 .. count()-1, for scratch memory of a thread's own. Never a share of the work: see `each`.
  int index() const { return index_; }
  int count() const { return count_; }

  /// Shares `items` among the threads of the phase, in multiples of `grain.least`. A thread goes through a
  /// share of its own in ascending order, so that memory is read as one stream, then helps with those of
  /// others. Which thread takes which item must not matter to the result: threads split rows, never a
  /// reduction. Returns when nothing is left to take; other threads may still be at their last run. Several
  /// calls in one phase, at most 256, are shared one after another, and every thread must make the same
  /// calls.
  template <class F>  // void(int64_t begin, int64_t end)
  void each(int64_t items, Grain grain, F&& f) {
    const uint32_t serial = serial_++;
    const int64_t pieces = (items + grain.least - 1) / grain.least, most = grain.most / grain.least;
    for (int i = 0; i < count_; ++i) {
      const int share = index_ + i < count_ ? index_ + i : index_ + i - count_;
      const int64_t first = first_piece(pieces, share), size = first_piece(pieces, share + 1) - first;
      for (Pieces run; (run = take(taken_[share], serial, size, most)).count > 0;) {
        const int64_t begin = (first + run.first) * grain.least;
        f(begin, std::min(begin + run.count * grain.least, items));
      }
    }
  }

  /// About where this thread's share of `items` begins; `items` if it has none.
  int64_t first_item(int64_t items) const { return first_piece(items, index_); }

 private:
  friend class ThreadPool;
  /// What is taken of a thread's share: | serial number of the call (32 bits) | pieces (32 bits) |
  struct alignas(64) Taken {
    std::atomic<uint64_t> word{0};
  };
  Worker(int index, int count, Taken* taken, uint32_t serial)
      : index_(index), count_(count), taken_(taken), serial_(serial) {}
  int64_t first_piece(int64_t pieces, int share) const { return (pieces * share + count_ - 1) / count_; }
  /// Pieces of a share that follow one another.
  struct Pieces {
    int64_t first, count;
  };
  /// Half of what is left of a share of `size` pieces, but one to `most`; none if nothing is left.
  static Pieces take(Taken& taken, uint32_t serial, int64_t size, int64_t most);

  int index_;
  int count_;
  Taken* taken_;  // of every share
  uint32_t serial_;
};

/// What a thread will read soon: something whole, then a stream, each null if there is none.
struct NextRead {
  const void* whole;
  size_t whole_bytes;
  const void* stream;
};

/// A persistent pool. Jobs run one after another on thread 0, which leads the others through parallel phases.
/// Between the phases of a job threads spin for a moment (a token is ~290 matrices). Followers stay awake for
/// a millisecond after it, so that the next step of a stream finds them; then they sleep.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool() { end(); }
  /// Runs the jobs still queued, then ends the threads; nothing may be submitted any more. Never from a
  /// thread of the pool.
  void end();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int threads() const { return static_cast<int>(threads_.size()); }

  /// Queues a job; it runs when those before it have ended. Any thread may call it. A job must not throw.
  void submit(std::function<void()> job);

  /// From inside a job, not from inside a phase: what each thread reads after the phases that follow, which
  /// it asks for while it waits for the others. `reader` must outlive these phases; null for nothing.
  template <class Reader>  // NextRead next_read(const Worker&) const
  void read_next(const Reader* reader) {
    next_ = {[](const void* context, const Worker& worker) {
               return static_cast<const Reader*>(context)->next_read(worker);
             },
             reader};
  }

  /// From inside a job, not from inside a phase: runs `phase` on thread 0 and on every other thread that
  /// comes before all work is taken (a thread that the system holds back delays nobody), so all work goes
  /// through Worker::each. Returns when all are done; throws the first exception that left a phase.
  template <class F>  // void(Worker&)
  void parallel(F&& phase) {
    using Phase = std::remove_reference_t<F>;
    run({[](void* context, Worker& worker) { (*static_cast<Phase*>(context))(worker); },
         const_cast<void*>(static_cast<const void*>(&phase))});
  }

 private:
  struct Phase {
    void (*call)(void* context, Worker& worker);
    void* context;
  };
  struct Next {
    NextRead (*read)(const void* context, const Worker& worker);
    const void* context;
  };
  /// What a thread asks for while it waits.
  class Ahead {
   public:
    void begin(const NextRead& next);
    void ask();

   private:
    NextRead next_{};
    size_t asked_ = 0;
  };
  template <class Ready>
  static bool spin(Ahead& ahead, Ready&& ready);
  void run(Phase phase);
  void enter(const Phase& phase, int index, Ahead& ahead);
  void lead();
  void follow(int index);

  // Phase state, one word so that a follower can sleep on it: | epoch | closed | followers that joined (8
  // bits) |
  alignas(64) std::atomic<uint32_t> state_;
  uint32_t serial_ = 0;  // of the first call of `each` in the phase; the next phase begins 256 later
  Phase phase_{};        // beside the word that tells of it
  Next next_{};
  alignas(64) std::atomic<uint32_t> left_{0};  // followers that have left the phase
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> leader_sleeps_{false};
  std::atomic<bool> stopping_{false};
  Ahead leaders_ahead_;
  std::vector<Worker::Taken> taken_;
  std::exception_ptr failure_;
  std::mutex failure_mutex_;

  std::mutex mutex_;  // of the queue
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool ending_ = false;

  std::vector<std::thread> threads_;
};

}  // namespace niwaki
