#pragma once
#include <napi.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "niwaki/device.h"

namespace niwaki::node {

/// What a job hands over before it ends.
class JobPart {
 public:
  virtual ~JobPart() = default;
  virtual Napi::Value value(Napi::Env env) = 0;
};

/// A job whose callback `(error, result)` is owed to JavaScript. Lives on the JavaScript thread; only `error`
/// and the result of a subclass are written by the device's thread, before it calls JobQueue::complete.
class PendingJob {
 public:
  virtual ~PendingJob() = default;
  virtual Napi::Value result(Napi::Env env) = 0;

  uint32_t id = 0;
  std::shared_ptr<Device> device;  // a device is never destroyed on its own thread
  std::shared_ptr<Job> job;
  Napi::FunctionReference callback;
  Napi::FunctionReference on_part;  // (value); must not throw
  std::exception_ptr error;
};

/// The jobs of one JavaScript environment (the main thread or a worker). Jobs end on threads of a device;
/// their callbacks are called on the environment's thread. While there are jobs the environment's event loop
/// stays alive.
class JobQueue {
 public:
  /// Creates the environment's queue; it closes with the environment.
  static void create(Napi::Env env);
  static const std::shared_ptr<JobQueue>& of(Napi::Env env);

  /// Registers a job that is about to be submitted, and returns its id.
  uint32_t add(Napi::Env env, std::unique_ptr<PendingJob> job);
  /// Forgets a job that could not be submitted.
  void remove(Napi::Env env, uint32_t id);
  /// Asks a job to stop, or to end with the step that runs; nothing happens if it has already ended.
  void cancel(uint32_t id);
  void finish(uint32_t id);
  /// Any thread: the job, which goes on, has something for JavaScript.
  void hand_over(PendingJob* job, std::unique_ptr<JobPart> part);
  /// Any thread: the job has ended, its result is in place.
  void complete(PendingJob* job);

 private:
  /// A part of a job, or its end.
  struct Event {
    PendingJob* job;
    std::unique_ptr<JobPart> part;
  };
  static void deliver(Napi::Env env, Napi::Function, JobQueue* queue, Event* event);
  void end(Napi::Env env, PendingJob* pending);
  void close();

  using Signal = Napi::TypedThreadSafeFunction<JobQueue, Event, &JobQueue::deliver>;
  Signal signal_;
  std::unordered_map<uint32_t, std::unique_ptr<PendingJob>> jobs_;  // JavaScript thread only
  uint32_t next_id_ = 1;

  std::mutex mutex_;
  std::condition_variable idle_;
  int64_t running_ = 0;  // submitted and not yet completed
};

/// Registers `pending` and submits it with `submit(job)`, which returns the device's job. Returns the id.
template <class P, class Submit>
Napi::Value start_job(Napi::Env env, std::unique_ptr<P> pending, Submit&& submit) {
  P* job = pending.get();
  const auto& queue = JobQueue::of(env);
  const uint32_t id = queue->add(env, std::move(pending));
  try {
    job->job = submit(job, queue);
  } catch (...) {
    queue->remove(env, id);
    throw;
  }
  return Napi::Number::New(env, id);
}

}  // namespace niwaki::node
