#include "niwaki/device.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iterator>
#include <new>
#include <span>
#include <system_error>
#include <thread>
#include <utility>

#include "cpu/adapter_slots.h"
#include "cpu/plan.h"
#include "src/plan_check.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "cpu/weight_memory.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

using Clock = std::chrono::steady_clock;

class CpuJob final : public Job {
 public:
  void cancel() override { cancelled.store(true, std::memory_order_relaxed); }
  void finish() override { finished.store(true, std::memory_order_relaxed); }
  std::atomic<bool> cancelled{false};
  std::atomic<bool> finished{false};
};

/// Cores that this process may use: its affinity, and the share of processor time that its control group
/// allows.
int32_t usable_cores() {
  int64_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::ifstream limit("/sys/fs/cgroup/cpu.max");  // "max 100000" or "200000 100000": time in every period
  int64_t quota, period;
  if (limit >> quota >> period && quota > 0 && period > 0)
    cores = std::min(cores, std::max<int64_t>(1, quota / period));
  return static_cast<int32_t>(std::min<int64_t>(cores, 256));
}

/// Makes a step the one that follows it.
void become_following(Step& step, std::span<const SampleResult> chosen) {
  step.tokens.resize(chosen.size());
  step.outputs.resize(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    step.tokens[i] = chosen[i].token;
    step.outputs[i] = static_cast<int32_t>(i);
    step.sequences[i].row_count = 1;
    ++step.sequences[i].context_length;
  }
}

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

class CpuDevice final : public Device {
 public:
  CpuDevice(const Tier& tier, int32_t threads) : tier_(tier), tier_name_(tier.name), pool_(threads) {}

  /// Cancels what is queued; the pool's end waits for what runs.
  ~CpuDevice() override { closing_.store(true, std::memory_order_relaxed); }

  int32_t threads() const override { return pool_.threads(); }
  const std::string& tier() const override { return tier_name_; }

  std::shared_ptr<Job> load(std::vector<MatrixSource> sources, int64_t columns,
                            std::shared_ptr<void> keep_alive, MatrixDone done) override {
    auto job = std::make_shared<CpuJob>();
    enqueue([this, job, sources = std::move(sources), columns, keep_alive = std::move(keep_alive),
             done = std::move(done)]() mutable {
      std::shared_ptr<const Matrix> matrix;
      const std::exception_ptr failure = failure_of([&] {
        start(*job, "the load");
        matrix = CpuMatrix::pack(sources, columns, pool_, arena_);
      });
      keep_alive.reset();
      done(failure, std::move(matrix));
    });
    return job;
  }

  std::shared_ptr<KvCache> create_kv_cache(const KvShape& shape) override {
    return std::make_shared<CpuKvCache>(shape);
  }

  std::shared_ptr<Plan> compile(PlanSpec spec) override {
    return std::make_shared<CpuPlan>(std::move(spec), tier_, pool_, identity_);
  }

  std::shared_ptr<Job> create_adapter_slots(std::shared_ptr<Plan> plan, AdapterSlotsSpec spec,
                                            SlotsDone done) override {
    auto slots = std::make_shared<CpuAdapterSlots>(own(std::move(plan)), std::move(spec));
    return submit("making adapter slots", [this, slots, done = std::move(done)](auto&& guard) mutable {
      const std::exception_ptr failure = guard([&] { slots->populate(pool_); });
      done(failure, failure ? nullptr : std::move(slots));
    });
  }

  std::shared_ptr<Job> load_adapter(std::shared_ptr<AdapterSlots> slots, int32_t slot,
                                    std::vector<AdapterTarget> adapter, std::shared_ptr<void> keep_alive,
                                    Done done) override {
    auto cpu_slots = own(std::move(slots));
    cpu_slots->check(slot, adapter);
    return submit("the load of an adapter",
                  [this, slots = std::move(cpu_slots), slot, adapter = std::move(adapter),
                   keep_alive = std::move(keep_alive), done = std::move(done)](auto&& guard) mutable {
                    const std::exception_ptr failure = guard([&] { slots->load(pool_, slot, adapter); });
                    slots.reset();
                    keep_alive.reset();
                    done(failure);
                  });
  }

  std::shared_ptr<Job> adapter_row_norms(std::shared_ptr<AdapterSlots> slots, AdapterTarget target,
                                         std::shared_ptr<void> keep_alive, RowNormsDone done) override {
    auto cpu_slots = own(std::move(slots));
    cpu_slots->check(target);
    return submit("the norms of an adapter", [this, slots = std::move(cpu_slots), target = std::move(target),
                                              keep_alive = std::move(keep_alive),
                                              done = std::move(done)](auto&& guard) mutable {
      std::vector<float> norms;
      const std::exception_ptr failure = guard([&] { norms = slots->row_norms(pool_, target); });
      slots.reset();
      keep_alive.reset();
      done(failure, std::move(norms));
    });
  }

  std::shared_ptr<Job> run(std::shared_ptr<Plan> plan, Step step, StepDone done,
                           SamplesReady ready) override {
    auto cpu_plan = own(std::move(plan));
    check_step(cpu_plan->spec(), step);
    if (step.adapter_slots != nullptr) {
      const auto* slots = dynamic_cast<const CpuAdapterSlots*>(step.adapter_slots.get());
      if (slots == nullptr || &slots->plan() != cpu_plan.get())
        throw Error(ErrorCode::kInvalidArgument, "step: the adapter slots were made for another plan");
    }
    auto job = std::make_shared<CpuJob>();
    enqueue([this, job, submitted = Clock::now(), plan = std::move(cpu_plan), step = std::move(step),
             done = std::move(done), ready = std::move(ready)]() mutable {
      StepResult result;
      const std::exception_ptr failure = failure_of([&] {
        start(*job, "the step");
        const Clock::time_point begun = std::max(submitted, free_since_);
        result = plan->run(step, job->cancelled);
        result.waited = std::chrono::duration<double>(begun - submitted).count();
        run_following(*plan, step, *job, begun, ready, result);
      });
      plan.reset();
      step.adapter_slots.reset();
      done(failure, std::move(result));
    });
    return job;
  }

  std::shared_ptr<Job> submit(Work work, WorkDone done) override {
    auto job = std::make_shared<CpuJob>();
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

 private:
  std::shared_ptr<CpuPlan> own(std::shared_ptr<Plan> plan) const {
    auto cpu_plan = std::dynamic_pointer_cast<CpuPlan>(std::move(plan));
    if (cpu_plan == nullptr || cpu_plan->owner() != identity_.get())
      throw Error(ErrorCode::kInvalidArgument, "the plan was compiled on another device");
    return cpu_plan;
  }
  std::shared_ptr<CpuAdapterSlots> own(std::shared_ptr<AdapterSlots> slots) const {
    auto cpu_slots = std::dynamic_pointer_cast<CpuAdapterSlots>(std::move(slots));
    if (cpu_slots == nullptr || cpu_slots->plan().owner() != identity_.get())
      throw Error(ErrorCode::kInvalidArgument, "the adapter slots were made on another device");
    return cpu_slots;
  }

  /// Runs the steps that follow `step`, which becomes one after the other; `result` is that of the first, and
  /// in the end has the samples that were not handed over.
  static void run_following(CpuPlan& plan, Step& step, const CpuJob& job, Clock::time_point begun,
                            const SamplesReady& ready, StepResult& result) {
    std::vector<SampleResult>& samples = result.samples;
    const size_t count = step.samples.size();
    const std::chrono::duration<double> within(step.samples_within);
    Clock::time_point handed_over = begun;
    for (int32_t left = step.following; left > 0; --left) {
      if (job.finished.load(std::memory_order_relaxed)) return;
      const auto chosen = std::span(samples).last(count);
      for (size_t i = 0; i < count; ++i) {
        const auto& stop = step.samples[i].stop_tokens;
        if (std::find(stop.begin(), stop.end(), chosen[i].token) != stop.end()) return;
      }
      become_following(step, chosen);
      const auto now = Clock::now(), next_end = now + (now - begun);
      if (ready && next_end - handed_over > within) {
        ready(std::exchange(samples, {}), result.waited);
        handed_over = now;
      }
      begun = now;
      StepResult next = plan.run(step, job.cancelled);
      std::move(next.samples.begin(), next.samples.end(), std::back_inserter(samples));
    }
  }

  /// Runs f when all that was queued before has ended.
  template <class F>
  void enqueue(F f) {
    pool_.submit([this, f = std::move(f)]() mutable {
      f();
      free_since_ = Clock::now();
    });
  }

  /// Queues a job; it passes what it does to the function that it gets, which returns the failure if there
  /// was one.
  template <class F>
  std::shared_ptr<Job> submit(const char* what, F f) {
    auto job = std::make_shared<CpuJob>();
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

  void start(const CpuJob& job, const char* what) const {
    if (closing_.load(std::memory_order_relaxed)) {
      throw Error(ErrorCode::kCancelled,
                  std::string(what) + " was cancelled: the device was closed before it began");
    }
    if (job.cancelled.load(std::memory_order_relaxed)) {
      throw Error(ErrorCode::kCancelled, std::string(what) + " was cancelled before it began");
    }
  }

  const Tier& tier_;
  const std::string tier_name_;
  const std::shared_ptr<const void> identity_ = std::make_shared<char>();
  std::atomic<bool> closing_{false};
  // Only jobs use these, one after another.
  WeightArena arena_;
  Clock::time_point free_since_;
  ThreadPool pool_;  // last: its end runs the jobs that use the above
};

}  // namespace

std::shared_ptr<Device> Device::open(const Options& options) {
  if (options.threads < 0 || options.threads > 256) {
    throw Error(ErrorCode::kInvalidArgument,
                "threads must be 0 to 256, got " + std::to_string(options.threads));
  }
  const Tier& tier = choose_tier(options.tier);
  const int32_t threads = options.threads == 0 ? usable_cores() : options.threads;
  try {
    return std::make_shared<CpuDevice>(tier, threads);
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kOutOfMemory,
                "cannot start " + std::to_string(threads) + " threads: " + error.what());
  }
}

std::vector<std::string> Device::tiers() {
  std::vector<std::string> names;
  for (const Tier* tier : available_tiers()) names.push_back(tier->name);
  return names;
}

}  // namespace niwaki
