#include "jobs.h"

#include "errors.h"

namespace niwaki::node {
namespace {

struct EnvironmentData {
  std::shared_ptr<JobQueue> queue;
};

}  // namespace

void JobQueue::create(Napi::Env env) {
  auto queue = std::make_shared<JobQueue>();
  queue->signal_ = Signal::New(env, "niwaki.jobs", 0, 1, queue.get());
  queue->signal_.Unref(env);
  env.SetInstanceData(new EnvironmentData{queue});
  // Hooks run last in, first out: this one before that of the thread-safe function, and before references
  // die.
  env.AddCleanupHook([](JobQueue* closing) { closing->close(); }, queue.get());
}

const std::shared_ptr<JobQueue>& JobQueue::of(Napi::Env env) {
  return env.GetInstanceData<EnvironmentData>()->queue;
}

uint32_t JobQueue::add(Napi::Env env, std::unique_ptr<PendingJob> job) {
  while (next_id_ == 0 || jobs_.contains(next_id_)) ++next_id_;
  const uint32_t id = next_id_++;
  job->id = id;
  jobs_.emplace(id, std::move(job));
  if (jobs_.size() == 1) signal_.Ref(env);
  std::lock_guard lock(mutex_);
  ++running_;
  return id;
}

void JobQueue::remove(Napi::Env env, uint32_t id) {
  {
    std::lock_guard lock(mutex_);
    --running_;
  }
  jobs_.erase(id);
  if (jobs_.empty()) signal_.Unref(env);
}

void JobQueue::cancel(uint32_t id) {
  const auto found = jobs_.find(id);
  if (found != jobs_.end() && found->second->job) found->second->job->cancel();
}

void JobQueue::finish(uint32_t id) {
  const auto found = jobs_.find(id);
  if (found != jobs_.end() && found->second->job) found->second->job->finish();
}

// close() waits for the end of the job, so the thread-safe function is still there.
void JobQueue::hand_over(PendingJob* job, std::unique_ptr<JobPart> part) {
  signal_.NonBlockingCall(new Event{job, std::move(part)});
}

void JobQueue::complete(PendingJob* job) {
  // Under the lock, so that close() cannot return while this thread still uses the thread-safe function.
  std::lock_guard lock(mutex_);
  signal_.NonBlockingCall(new Event{job, nullptr});
  --running_;
  idle_.notify_all();
}

void JobQueue::deliver(Napi::Env env, Napi::Function, JobQueue* queue, Event* given) {
  const std::unique_ptr<Event> event(given);
  if (env == nullptr) return;  // the environment is gone, and close() has freed the job
  if (event->part) {
    event->job->on_part.Call({event->part->value(env)});
  } else {
    queue->end(env, event->job);
  }
}

void JobQueue::end(Napi::Env env, PendingJob* pending) {
  auto entry = jobs_.extract(pending->id);
  const std::unique_ptr<PendingJob> job = std::move(entry.mapped());
  if (jobs_.empty()) signal_.Unref(env);
  Napi::Value error = env.Null();
  Napi::Value result = env.Null();
  if (!job->error) {
    try {
      result = job->result(env);
    } catch (const Napi::Error& failed) {
      error = failed.Value();
    } catch (...) {
      job->error = std::current_exception();
    }
  }
  if (job->error) error = to_error(env, job->error).Value();
  job->callback.Call({error, result});
}

void JobQueue::close() {
  for (const auto& [id, job] : jobs_) {
    if (job->job) job->job->cancel();
  }
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return running_ == 0; });
  lock.unlock();
  jobs_.clear();
}

}  // namespace niwaki::node
