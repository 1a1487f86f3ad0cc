#include "niwaki/adapter.h"

#include <string>
#include <vector>

#include "exports.h"
#include "handle.h"
#include "jobs.h"
#include "niwaki/device.h"
#include "niwaki/error.h"
#include "niwaki/mapped_file.h"

// An adapter's target is { tensor, rank, scale, a, b, rowScale } with a and b { type, byteLength, data },
// data a Uint8Array or { file, offset }, and rowScale a Float32Array or null.

namespace niwaki::node {
namespace {

/// A job that reads what an adapter lies in. It is read where it is: copying an adapter would cost the event
/// loop more than a step. The references keep JavaScript from collecting it.
class PendingAdapter : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

  AdapterTarget add(const Napi::Object& from) {
    AdapterTarget target{.tensor = from.Get("tensor").As<Napi::String>().Utf8Value(),
                         .rank = from.Get("rank").As<Napi::Number>().Int32Value(),
                         .scale = from.Get("scale").As<Napi::Number>().FloatValue(),
                         .a = matrix(from.Get("a").As<Napi::Object>()),
                         .b = matrix(from.Get("b").As<Napi::Object>()),
                         .row_scale = {}};
    const Napi::Value scale = from.Get("rowScale");
    if (!scale.IsNull()) {
      const auto array = scale.As<Napi::Float32Array>();
      target.row_scale.assign(array.Data(), array.Data() + array.ElementLength());
    }
    return target;
  }

  /// Shared with the job: the files that it reads.
  const std::shared_ptr<std::vector<std::shared_ptr<MappedFile>>> files =
      std::make_shared<std::vector<std::shared_ptr<MappedFile>>>();

 private:
  AdapterMatrix matrix(const Napi::Object& from) {
    const auto type = static_cast<DataType>(from.Get("type").As<Napi::Number>().Int32Value());
    const auto data = from.Get("data").As<Napi::Object>();
    if (data.IsTypedArray()) {
      const auto bytes = data.As<Napi::Uint8Array>();
      arrays_.push_back(Napi::Persistent(data));
      return {type, {bytes.Data(), bytes.ElementLength()}};
    }
    const auto& file = unwrap<MappedFile>(data.Get("file"));
    const auto offset = static_cast<uint64_t>(data.Get("offset").As<Napi::Number>().Int64Value());
    const auto size = static_cast<uint64_t>(from.Get("byteLength").As<Napi::Number>().Int64Value());
    if (offset > file->size() || size > file->size() - offset)
      throw Error(ErrorCode::kInvalidArgument,
                  "an adapter's matrix reaches beyond the end of " + file->path());
    file->check_size();
    files->push_back(file);
    return {type, {file->data() + offset, size}};
  }

  std::vector<Napi::ObjectReference> arrays_;
};

class PendingSlots final : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override {
    auto object = Napi::Object::New(env);
    const size_t bytes = slots->bytes();
    auto shapes = Napi::Array::New(env, slots->shapes().size());
    for (uint32_t i = 0; i < shapes.Length(); ++i) {
      const Napi::HandleScope scope(env);
      auto shape = Napi::Object::New(env);
      shape.Set("rows", static_cast<double>(slots->shapes()[i].rows));
      shape.Set("columns", static_cast<double>(slots->shapes()[i].columns));
      shapes.Set(i, shape);
    }
    object.Set("byteLength", static_cast<double>(bytes));
    object.Set("shapes", shapes);
    object.Set("handle", wrap(env, std::move(slots), bytes));
    return object;
  }

  std::shared_ptr<AdapterSlots> slots;
};

class PendingNorms final : public PendingAdapter {
 public:
  Napi::Value result(Napi::Env env) override {
    auto array = Napi::Float32Array::New(env, norms.size());
    std::copy(norms.begin(), norms.end(), array.Data());
    return array;
  }

  std::vector<float> norms;
};

}  // namespace

Napi::Value create_adapter_slots(const Napi::CallbackInfo& info) {
  AdapterSlotsSpec spec{.slots = info[2].As<Napi::Number>().Int32Value(),
                        .max_rank = info[3].As<Napi::Number>().Int32Value(),
                        .type = static_cast<AdapterType>(info[4].As<Napi::Number>().Int32Value()),
                        .targets = {}};
  const auto targets = info[5].As<Napi::Array>();
  for (uint32_t i = 0; i < targets.Length(); ++i)
    spec.targets.push_back(targets.Get(i).As<Napi::String>().Utf8Value());

  auto pending = std::make_unique<PendingSlots>();
  pending->device = unwrap<Device>(info[0]);
  pending->callback = Napi::Persistent(info[6].As<Napi::Function>());
  auto plan = unwrap<Plan>(info[1]);
  return start_job(info.Env(), std::move(pending),
                   [&](PendingSlots* job, const std::shared_ptr<JobQueue>& queue) {
                     return job->device->create_adapter_slots(
                         std::move(plan), std::move(spec),
                         [job, queue](std::exception_ptr error, std::shared_ptr<AdapterSlots> slots) {
                           job->error = error;
                           job->slots = std::move(slots);
                           queue->complete(job);
                         });
                   });
}

Napi::Value load_adapter(const Napi::CallbackInfo& info) {
  auto pending = std::make_unique<PendingAdapter>();
  pending->device = unwrap<Device>(info[0]);
  auto slots = unwrap<AdapterSlots>(info[1]);
  const int32_t slot = info[2].As<Napi::Number>().Int32Value();
  std::vector<AdapterTarget> adapter;
  const auto targets = info[3].As<Napi::Array>();
  for (uint32_t i = 0; i < targets.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    adapter.push_back(pending->add(targets.Get(i).As<Napi::Object>()));
  }
  pending->callback = Napi::Persistent(info[4].As<Napi::Function>());
  return start_job(info.Env(), std::move(pending),
                   [&](PendingAdapter* job, const std::shared_ptr<JobQueue>& queue) {
                     return job->device->load_adapter(std::move(slots), slot, std::move(adapter), job->files,
                                                      [job, queue](std::exception_ptr error) {
                                                        job->error = error;
                                                        queue->complete(job);
                                                      });
                   });
}

Napi::Value adapter_row_norms(const Napi::CallbackInfo& info) {
  auto pending = std::make_unique<PendingNorms>();
  pending->device = unwrap<Device>(info[0]);
  auto slots = unwrap<AdapterSlots>(info[1]);
  AdapterTarget target = pending->add(info[2].As<Napi::Object>());
  pending->callback = Napi::Persistent(info[3].As<Napi::Function>());
  return start_job(info.Env(), std::move(pending),
                   [&](PendingNorms* job, const std::shared_ptr<JobQueue>& queue) {
                     return job->device->adapter_row_norms(
                         std::move(slots), std::move(target), job->files,
                         [job, queue](std::exception_ptr error, std::vector<float> norms) {
                           job->error = error;
                           job->norms = std::move(norms);
                           queue->complete(job);
                         });
                   });
}

}  // namespace niwaki::node
