#pragma once
#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "niwaki/adapter.h"
#include "niwaki/matrix.h"
#include "niwaki/plan.h"
#include "niwaki/step.h"

namespace niwaki {

class ThreadPool;

/// A plan made ready to run: its buffers are allocated, its operations bound to kernels.
class Plan {
 public:
  virtual ~Plan() = default;
  /// Bytes of the activation buffers and scratch (reserved; touched when first used).
  virtual size_t bytes() const = 0;
};

/// A submitted piece of work.
class Job {
 public:
  virtual ~Job() = default;
  /// Cancelling is a request: a step stops between operations and ends with kCancelled.
  virtual void cancel() = 0;
  /// Of several steps that follow one another, the one that runs is the last; other work takes no notice.
  virtual void finish() = 0;
};

/// Steps in flight and loads run one after another, in the order they were submitted, on the device's
/// threads. Callbacks come on a thread of the device: they must be quick and must not call back into it.
class Device {
 public:
  struct Options {
    int32_t threads = 0;  // 0: one per core this process may use
    std::string tier;     // "": the best that this machine has; or a name of tiers()
  };
  /// Throws kUnsupported for a tier that this machine or build does not have, naming those it has.
  static std::shared_ptr<Device> open(const Options& options);
  /// Tiers that run on this machine, best first.
  static std::vector<std::string> tiers();
  virtual ~Device() = default;

  virtual int32_t threads() const = 0;
  virtual const std::string& tier() const = 0;

  using MatrixDone = std::function<void(std::exception_ptr, std::shared_ptr<const Matrix>)>;
  /// `keep_alive` owns the memory that the sources point into.
  virtual std::shared_ptr<Job> load(std::vector<MatrixSource> sources, int64_t columns,
                                    std::shared_ptr<void> keep_alive, MatrixDone done) = 0;

  /// Throws kInvalidArgument, kOutOfMemory, kUnsupported for a type that the device does not have.
  virtual std::shared_ptr<KvCache> create_kv_cache(const KvShape& shape) = 0;

  /// Checks the whole specification: widths that fit, buffers that exist. Throws kInvalidArgument,
  /// kOutOfMemory.
  virtual std::shared_ptr<Plan> compile(PlanSpec spec) = 0;

  using SlotsDone = std::function<void(std::exception_ptr, std::shared_ptr<AdapterSlots>)>;
  /// The specification is checked at once (throws kInvalidArgument naming a target that the plan does not
  /// multiply by, kOutOfMemory); then the memory is taken from the system.
  virtual std::shared_ptr<Job> create_adapter_slots(std::shared_ptr<Plan> plan, AdapterSlotsSpec spec,
                                                    SlotsDone done) = 0;

  using Done = std::function<void(std::exception_ptr)>;
  /// Replaces what a slot holds, between two steps; with no target the slot is empty afterwards. Shapes are
  /// checked at once (throws kInvalidArgument), values before anything is changed: kNonFinite naming the
  /// tensor if one is NaN, infinite or beyond float16. `keep_alive` owns the memory of the matrices.
  virtual std::shared_ptr<Job> load_adapter(std::shared_ptr<AdapterSlots> slots, int32_t slot,
                                            std::vector<AdapterTarget> adapter,
                                            std::shared_ptr<void> keep_alive, Done done) = 0;

  using RowNormsDone = std::function<void(std::exception_ptr, std::vector<float>)>;
  /// ||W + scale B A|| of every row of the target's tensor, in float32: what DoRA divides its magnitudes by.
  virtual std::shared_ptr<Job> adapter_row_norms(std::shared_ptr<AdapterSlots> slots, AdapterTarget target,
                                                 std::shared_ptr<void> keep_alive, RowNormsDone done) = 0;

  using StepDone = std::function<void(std::exception_ptr, StepResult)>;
  using SamplesReady = std::function<void(std::vector<SampleResult>, double waited)>;
  /// The step is checked at once (throws kInvalidArgument: a token, row, block or length out of range). Where
  /// steps follow, `ready` gets the samples of those that ran (Step::samples_within) while the next one is
  /// about to; those of the last always come with `done`.
  virtual std::shared_ptr<Job> run(std::shared_ptr<Plan> plan, Step step, StepDone done,
                                   SamplesReady ready = nullptr) = 0;

  /// Any other work, in turn with loads and steps: `work` runs as a job of the pool and looks at `cancelled`
  /// when it likes.
  using Work = std::function<void(ThreadPool& pool, const std::atomic<bool>& cancelled)>;
  using WorkDone = std::function<void(std::exception_ptr)>;
  virtual std::shared_ptr<Job> submit(Work work, WorkDone done) = 0;
};

}  // namespace niwaki
