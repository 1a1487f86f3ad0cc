#include "src/queued_device.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <new>
#include <thread>

#include "niwaki/error.h"
#include "src/plan_check.h"

namespace niwaki {
namespace {

/// What a job throws, as an Error of this library where it has a code for it.
template <class F>
std::exception_ptr failure_of(F&& f) {
  try {
    try {
      f();
      return nullptr;
    } catch (const std::bad_alloc&) {
      throw Error(ErrorCode::kOutOfMemory, "the system gave no more memory");
    }
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace

void become_following(Step& step) {
  step.tokens.resize(step.sequences.size());
  step.outputs.resize(step.sequences.size());
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    step.outputs[i] = static_cast<int32_t>(i);
    step.sequences[i].row_count = 1;
    ++step.sequences[i].context_length;
  }
}

QueuedPlan::QueuedPlan(PlanSpec spec, std::shared_ptr<const void> owner)
    : spec_(std::move(spec)), owner_(std::move(owner)) {
  check_plan(spec_);
}

void QueuedPlan::run_following(Step& step, const std::atomic<bool>& cancelled,
                               const std::atomic<bool>& finished, const StepRan& ran) {
  for (int32_t left = step.following;; --left) {
    StepResult result = run(step, cancelled);
    std::vector<int32_t> chosen;
    for (const SampleResult& sample : result.samples) chosen.push_back(sample.token);
    if (!ran(std::move(result), left > 0 && !finished.load(std::memory_order_relaxed))) return;
    become_following(step);
    step.tokens = std::move(chosen);
  }
}

class QueuedDevice::QueuedJob final : public Job {
 public:
  void cancel() override { cancelled.store(true, std::memory_order_relaxed); }
  void finish() override { finished.store(true, std::memory_order_relaxed); }
  std::atomic<bool> cancelled{false};
  std::atomic<bool> finished{false};
};

void QueuedDevice::close() {
  closing_.store(true, std::memory_order_relaxed);
  pool_.end();
}

std::shared_ptr<Job> QueuedDevice::load(std::vector<MatrixSource> sources, int64_t columns,
                                        std::shared_ptr<void> keep_alive, MatrixDone done) {
  auto job = std::make_shared<QueuedJob>();
  enqueue([this, job, sources = std::move(sources), columns, keep_alive = std::move(keep_alive),
           done = std::move(done)]() mutable {
    std::shared_ptr<const Matrix> matrix;
    const std::exception_ptr failure = failure_of([&] {
      start(*job, "the load");
      matrix = pack(sources, columns);
    });
    keep_alive.reset();
    done(failure, std::move(matrix));
  });
  return job;
}

std::shared_ptr<Job> QueuedDevice::create_adapter_slots(std::shared_ptr<Plan> plan, AdapterSlotsSpec spec,
                                                        SlotsDone done) {
  auto slots = make_slots(own(std::move(plan)), std::move(spec));
  return submit("making adapter slots", [this, slots, done = std::move(done)](auto&& guard) mutable {
    const std::exception_ptr failure = guard([&] { slots->populate(pool_); });
    done(failure, failure ? nullptr : std::move(slots));
  });
}

std::shared_ptr<Job> QueuedDevice::load_adapter(std::shared_ptr<AdapterSlots> slots, int32_t slot,
                                                std::vector<AdapterTarget> adapter,
                                                std::shared_ptr<void> keep_alive, Done done) {
  auto own_slots = own(std::move(slots));
  own_slots->check(slot, adapter);
  return submit("the load of an adapter",
                [this, slots = std::move(own_slots), slot, adapter = std::move(adapter),
                 keep_alive = std::move(keep_alive), done = std::move(done)](auto&& guard) mutable {
                  const std::exception_ptr failure = guard([&] { slots->load(pool_, slot, adapter); });
                  slots.reset();
                  keep_alive.reset();
                  done(failure);
                });
}

std::shared_ptr<Job> QueuedDevice::adapter_row_norms(std::shared_ptr<AdapterSlots> slots,
                                                     AdapterTarget target, std::shared_ptr<void> keep_alive,
                                                     RowNormsDone done) {
  auto own_slots = own(std::move(slots));
  own_slots->check(target);
  return submit("the norms of an adapter",
                [this, slots = std::move(own_slots), target = std::move(target),
                 keep_alive = std::move(keep_alive), done = std::move(done)](auto&& guard) mutable {
                  std::vector<float> norms;
                  const std::exception_ptr failure = guard([&] { norms = slots->row_norms(pool_, target); });
                  slots.reset();
                  keep_alive.reset();
                  done(failure, std::move(norms));
                });
}

std::shared_ptr<Job> QueuedDevice::run(std::shared_ptr<Plan> plan, Step step, StepDone done,
                                       SamplesReady ready) {
  auto own_plan = own(std::move(plan));
  check_step(own_plan->spec(), step);
  if (step.adapter_slots != nullptr) {
    const auto* slots = dynamic_cast<const QueuedSlots*>(step.adapter_slots.get());
    if (slots == nullptr || &slots->plan() != own_plan.get())
      throw Error(ErrorCode::kInvalidArgument, "step: the adapter slots were made for another plan");
  }
  auto job = std::make_shared<QueuedJob>();
  enqueue([this, job, submitted = Clock::now(), plan = std::move(own_plan), step = std::move(step),
           done = std::move(done), ready = std::move(ready)]() mutable {
    StepResult result;
    const std::exception_ptr failure = failure_of([&] {
      start(*job, "the step");
      const Clock::time_point begun = std::max(submitted, free_since_);
      const double waited = std::chrono::duration<double>(begun - submitted).count();
      if (step.following == 0) result = plan->run(step, job->cancelled);
      result.waited = waited;
      if (step.following > 0) run_following(*plan, step, *job, begun, ready, result);
    });
    plan.reset();
    step.adapter_slots.reset();
    done(failure, std::move(result));
  });
  return job;
}

std::shared_ptr<Job> QueuedDevice::submit(Work work, WorkDone done) {
  auto job = std::make_shared<QueuedJob>();
  enqueue([this, job, work = std::move(work), done = std::move(done)]() mutable {
    const std::exception_ptr failure = failure_of([&] {
      start(*job, "the work");
      work(pool_, job->cancelled);
    });
    work = nullptr;
    done(failure);
  });
  return job;
}

std::shared_ptr<QueuedPlan> QueuedDevice::own(std::shared_ptr<Plan> plan) const {
  auto own_plan = std::dynamic_pointer_cast<QueuedPlan>(std::move(plan));
  if (own_plan == nullptr || own_plan->owner() != identity_.get())
    throw Error(ErrorCode::kInvalidArgument, "the plan was compiled on another device");
  return own_plan;
}
std::shared_ptr<QueuedSlots> QueuedDevice::own(std::shared_ptr<AdapterSlots> slots) const {
  auto own_slots = std::dynamic_pointer_cast<QueuedSlots>(std::move(slots));
  if (own_slots == nullptr || own_slots->plan().owner() != identity_.get())
    throw Error(ErrorCode::kInvalidArgument, "the adapter slots were made on another device");
  return own_slots;
}

/// Runs a step and those that follow it; `result` has the samples that were not handed over.
void QueuedDevice::run_following(QueuedPlan& plan, Step& step, const QueuedJob& job, Clock::time_point begun,
                                 const SamplesReady& ready, StepResult& result) {
  std::vector<SampleResult>& samples = result.samples;
  const std::chrono::duration<double> within(step.samples_within);
  Clock::time_point handed_over = begun;
  plan.run_following(step, job.cancelled, job.finished, [&](StepResult one, bool more) {
    for (size_t i = 0; i < one.samples.size(); ++i) {
      const auto& stop = step.samples[i].stop_tokens;
      if (std::find(stop.begin(), stop.end(), one.samples[i].token) != stop.end()) more = false;
    }
    std::move(one.samples.begin(), one.samples.end(), std::back_inserter(samples));
    if (!more) return false;
    const auto now = Clock::now(), next_end = now + (now - begun);
    if (ready && next_end - handed_over > within) {
      ready(std::exchange(samples, {}), result.waited);
      handed_over = now;
    }
    begun = now;
    return true;
  });
}

/// Runs f when all that was queued before has ended.
template <class F>
void QueuedDevice::enqueue(F f) {
  pool_.submit([this, f = std::move(f)]() mutable {
    f();
    free_since_ = Clock::now();
  });
}

/// Queues a job; it passes what it does to the function that it gets, which returns the failure if there
/// was one.
template <class F>
std::shared_ptr<Job> QueuedDevice::submit(const char* what, F f) {
  auto job = std::make_shared<QueuedJob>();
  enqueue([this, job, what, f = std::move(f)]() mutable {
    f([&](auto&& work) {
      return failure_of([&] {
        start(*job, what);
        work();
      });
    });
  });
  return job;
}

void QueuedDevice::start(const QueuedJob& job, const char* what) {
  if (closing_.load(std::memory_order_relaxed)) {
    throw Error(ErrorCode::kCancelled,
                std::string(what) + " was cancelled: the device was closed before it began");
  }
  if (job.cancelled.load(std::memory_order_relaxed)) {
    throw Error(ErrorCode::kCancelled, std::string(what) + " was cancelled before it began");
  }
  begin_job();
}

int32_t usable_cores() {
  int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::ifstream limit("/sys/fs/cgroup/cpu.max");  // "max 100000" or "200000 100000": time in every period
  int64_t quota, period;
  if (limit >> quota >> period && quota > 0 && period > 0)
    cores = std::min(cores, std::max<int64_t>(1, quota / period));
  return static_cast<int32_t>(std::min<int64_t>(cores, 256));
}

}  // namespace niwaki
