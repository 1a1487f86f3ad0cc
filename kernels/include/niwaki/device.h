#pragma once
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "niwaki/matrix.h"
#include "niwaki/plan.h"
#include "niwaki/step.h"

namespace niwaki {

/// A plan made ready to run: its buffers are allocated, its operations bound to kernels.
class Plan {
 public:
  virtual ~Plan() = default;
  /// Bytes of the activation buffers and scratch (reserved; touched when first used).
  virtual size_t bytes() const = 0;
};

/// A submitted piece of work. Cancelling is a request: a step stops between operations and ends with
/// kCancelled.
class Job {
 public:
  virtual ~Job() = default;
  virtual void cancel() = 0;
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

  /// Checks the whole specification: widths that fit, buffers that exist. Throws kInvalidArgument,
  /// kOutOfMemory.
  virtual std::shared_ptr<Plan> compile(PlanSpec spec) = 0;

  using StepDone = std::function<void(std::exception_ptr, StepResult)>;
  /// The step is checked at once (throws kInvalidArgument: a token, row, block or length out of range).
  virtual std::shared_ptr<Job> run(std::shared_ptr<Plan> plan, Step step, StepDone done) = 0;
};

}  // namespace niwaki
