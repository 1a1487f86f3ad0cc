#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpu/thread_pool.h"
#include "niwaki/device.h"

namespace niwaki {

/// Makes a step the one that follows it (Step::following), but for its tokens, which are left to the caller.
void become_following(Step& step);

/// A plan of a QueuedDevice.
class QueuedPlan : public Plan {
 public:
  /// Throws kInvalidArgument.
  QueuedPlan(PlanSpec spec, std::shared_ptr<const void> owner);
  const PlanSpec& spec() const { return spec_; }
  /// The identity of the device that compiled it. A plan keeps it, so that no later device can have the same.
  const void* owner() const { return owner_.get(); }

  /// From a job of the pool, with a step that check_step has passed. Throws kCancelled, kNonFinite.
  virtual StepResult run(const Step& step, const std::atomic<bool>& cancelled) = 0;

  /// Gets the result of one step of several, and whether another is to follow; says whether it may.
  using StepRan = std::function<bool(StepResult result, bool more)>;
  /// Runs a step and those that follow it, which `step` becomes in turn, until `ran` refuses or `finished` is
  /// seen. Results are as if each step were begun after `ran` had the one before; a plan may begin one
  /// earlier, as long as nothing of it is left to run or is told when `ran` refuses it. From a job, as run();
  /// throws what it and `ran` do, and then runs nothing any more either.
  virtual void run_following(Step& step, const std::atomic<bool>& cancelled,
                             const std::atomic<bool>& finished, const StepRan& ran);

 private:
  const PlanSpec spec_;
  const std::shared_ptr<const void> owner_;
};

/// Adapter slots of a QueuedDevice.
class QueuedSlots : public AdapterSlots {
 public:
  virtual const QueuedPlan& plan() const = 0;

  /// Throws kInvalidArgument, kNonFinite naming the tensor. Any thread.
  virtual void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const = 0;
  virtual void check(const AdapterTarget& target) const = 0;

  // From inside a job of the pool; the latter two with what `check` has passed.

  /// Takes the memory from the system.
  virtual void populate(ThreadPool& pool) = 0;
  /// Replaces what a slot holds; nothing at all empties it. Throws kNonFinite naming the tensor, and then
  /// leaves the slot as it was.
  virtual void load(ThreadPool& pool, int32_t slot, const std::vector<AdapterTarget>& adapter) = 0;
  /// || W + scale B A || of every row of the target's tensor.
  virtual std::vector<float> row_norms(ThreadPool& pool, const AdapterTarget& target) const = 0;
};

/// What devices have in common: a queue of loads and steps that run one after another on a pool's threads,
/// their cancelling and their errors, and steps that follow one another.
class QueuedDevice : public Device {
 public:
  std::shared_ptr<Job> load(std::vector<MatrixSource> sources, int64_t columns,
                            std::shared_ptr<void> keep_alive, MatrixDone done) override;
  std::shared_ptr<Job> create_adapter_slots(std::shared_ptr<Plan> plan, AdapterSlotsSpec spec,
                                            SlotsDone done) override;
  std::shared_ptr<Job> load_adapter(std::shared_ptr<AdapterSlots> slots, int32_t slot,
                                    std::vector<AdapterTarget> adapter, std::shared_ptr<void> keep_alive,
                                    Done done) override;
  std::shared_ptr<Job> adapter_row_norms(std::shared_ptr<AdapterSlots> slots, AdapterTarget target,
                                         std::shared_ptr<void> keep_alive, RowNormsDone done) override;
  std::shared_ptr<Job> run(std::shared_ptr<Plan> plan, Step step, StepDone done, SamplesReady ready) override;
  std::shared_ptr<Job> submit(Work work, WorkDone done) override;

 protected:
  explicit QueuedDevice(int32_t threads) : pool_(threads) {}

  /// Cancels what is queued and waits for what runs: first thing in a destructor, as jobs call what is below.
  void close();

  // From inside a job.
  virtual std::shared_ptr<const Matrix> pack(const std::vector<MatrixSource>& sources, int64_t columns) = 0;
  virtual void begin_job() {}

  virtual std::shared_ptr<QueuedSlots> make_slots(std::shared_ptr<QueuedPlan> plan,
                                                  AdapterSlotsSpec spec) = 0;

  ThreadPool& pool() { return pool_; }
  const ThreadPool& pool() const { return pool_; }
  const std::shared_ptr<const void>& identity() const { return identity_; }

 private:
  using Clock = std::chrono::steady_clock;
  class QueuedJob;

  std::shared_ptr<QueuedPlan> own(std::shared_ptr<Plan> plan) const;
  std::shared_ptr<QueuedSlots> own(std::shared_ptr<AdapterSlots> slots) const;
  static void run_following(QueuedPlan& plan, Step& step, const QueuedJob& job, Clock::time_point begun,
                            const SamplesReady& ready, StepResult& result);
  template <class F>
  void enqueue(F f);
  template <class F>
  std::shared_ptr<Job> submit(const char* what, F f);
  void start(const QueuedJob& job, const char* what);

  const std::shared_ptr<const void> identity_ = std::make_shared<char>();
  std::atomic<bool> closing_{false};
  Clock::time_point free_since_;  // only jobs use it, one after another
  ThreadPool pool_;
};

/// Cores that this process may use: its affinity, and the share of processor time that its control group
/// allows.
int32_t usable_cores();

}  // namespace niwaki
