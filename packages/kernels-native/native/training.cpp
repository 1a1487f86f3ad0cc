#include "niwaki/training.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "exports.h"
#include "fields.h"
#include "handle.h"
#include "jobs.h"
#include "niwaki/device.h"

namespace niwaki::node {
namespace {

std::vector<LoraSpec> read_adapters(Napi::Value value) {
  const auto list = value.As<Napi::Array>();
  std::vector<LoraSpec> adapters;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Fields adapter(list.Get(i));
    adapters.push_back({.part = adapter.integer("part"),
                        .rank = adapter.integer("rank"),
                        .scale = static_cast<float>(adapter.number("scale"))});
  }
  return adapters;
}

TrainingOp read_training_op(const Fields& op) {
  const std::string kind = op.string("op");
  if (kind == "embed") {
    return EmbedOp{.table = op.object<const Matrix>("table"), .out = op.integer("out")};
  }
  if (kind == "rmsNorm") {
    return RmsNormOp{.in = op.integer("input"),
                     .weight = op.object<Vector>("weight"),
                     .out = op.integer("out"),
                     .eps = static_cast<float>(op.number("eps"))};
  }
  if (kind == "linear") {
    return LoraLinearOp{.in = op.integer("input"),
                        .matrix = op.object<const Matrix>("matrix"),
                        .out = op.integer("out"),
                        .residual = op.integer("residual"),
                        .adapters = read_adapters(op.get("adapters"))};
  }
  if (kind == "normRope") {
    return NormRopeOp{.qkv = op.integer("qkv"),
                      .layout = read_layout(op),
                      .q_norm = op.object<Vector>("qNorm"),
                      .k_norm = op.object<Vector>("kNorm"),
                      .out = op.integer("out"),
                      .eps = static_cast<float>(op.number("eps"))};
  }
  if (kind == "causalAttention") {
    return CausalAttentionOp{.qk = op.integer("qk"),
                             .qkv = op.integer("qkv"),
                             .layout = read_layout(op),
                             .out = op.integer("out")};
  }
  if (kind == "swiglu") return SwigluOp{.in = op.integer("input"), .out = op.integer("out")};
  if (kind == "selectOutputs") return SelectOutputsOp{.in = op.integer("input"), .out = op.integer("out")};
  throw std::logic_error("no operation of training is called " + kind);
}

template <class T, class Array>
std::vector<T> vector_of(Napi::Value value) {
  const auto array = value.As<Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

/// A job that gives a number.
class PendingNumber final : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, number); }
  double number = 0;
};

class PendingValues final : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override {
    auto array = Napi::Float32Array::New(env, values.size());
    std::copy(values.begin(), values.end(), array.Data());
    return array;
  }
  std::vector<float> values;
};

/// Starts `work(job, pool, cancelled)` on the device of info[0]; the last argument is the callback.
template <class P, class F>
Napi::Value start_work(const Napi::CallbackInfo& info, F&& work) {
  auto pending = std::make_unique<P>();
  pending->device = unwrap<Device>(info[0]);
  pending->callback = Napi::Persistent(info[info.Length() - 1].As<Napi::Function>());
  return start_job(info.Env(), std::move(pending), [&](P* job, const std::shared_ptr<JobQueue>& queue) {
    return job->device->submit(
        [job, work = std::forward<F>(work)](ThreadPool& pool, const std::atomic<bool>& cancelled) mutable {
          work(job, pool, cancelled);
        },
        [job, queue](std::exception_ptr error) {
          job->error = error;
          queue->complete(job);
        });
  });
}

TrainingState read_state(Napi::Value value) {
  return static_cast<TrainingState>(value.As<Napi::Number>().Int32Value());
}

}  // namespace

Napi::Value compile_training(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const Fields from(info[1]);
  TrainingSpec spec{.max_rows = from.integer("maxRows"),
                    .max_outputs = from.integer("maxOutputs"),
                    .max_sequence = from.integer("maxSequence"),
                    .vocabulary = from.integer("vocabulary"),
                    .rope = read_rope(Fields(from.get("rope"))),
                    .buffers = {},
                    .ops = {},
                    .logits = from.integer("logits")};
  const auto buffers = from.get("buffers").As<Napi::Array>();
  for (uint32_t i = 0; i < buffers.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Fields buffer(buffers.Get(i));
    spec.buffers.push_back({.width = buffer.integer("width"), .per_output = buffer.boolean("perOutput")});
  }
  const auto ops = from.get("ops").As<Napi::Array>();
  for (uint32_t i = 0; i < ops.Length(); ++i) {
    const Napi::HandleScope scope(env);
    const Fields op(ops.Get(i));
    spec.ops.push_back({.op = read_training_op(op), .label = op.string("label")});
  }

  auto plan = TrainingPlan::compile(*unwrap<Device>(info[0]), std::move(spec));
  double parameters = 0;
  for (const auto& adapter : plan->adapters())
    parameters += static_cast<double>(adapter.rank * (adapter.inputs + adapter.outputs));
  const size_t bytes = plan->bytes();
  auto result = Napi::Object::New(env);
  result.Set("byteLength", static_cast<double>(bytes));
  result.Set("parameters", parameters);
  result.Set("handle", wrap(env, std::move(plan), bytes));
  return result;
}

Napi::Value accumulate_gradients(const Napi::CallbackInfo& info) {
  TrainingBatch batch{.tokens = vector_of<int32_t, Napi::Int32Array>(info[2]),
                      .sequences = vector_of<int32_t, Napi::Int32Array>(info[3]),
                      .outputs = vector_of<int32_t, Napi::Int32Array>(info[4]),
                      .targets = vector_of<int32_t, Napi::Int32Array>(info[5]),
                      .weights = vector_of<float, Napi::Float32Array>(info[6])};
  auto plan = unwrap<TrainingPlan>(info[1]);
  plan->check(batch);
  return start_work<PendingNumber>(
      info, [plan = std::move(plan), batch = std::move(batch)](PendingNumber* job, ThreadPool& pool,
                                                               const std::atomic<bool>& cancelled) {
        job->number = plan->accumulate(pool, batch, cancelled);
      });
}

Napi::Value update_parameters(const Napi::CallbackInfo& info) {
  const Fields from(info[2]);
  const AdamW options{.step = from.get("step").As<Napi::Number>().Int64Value(),
                      .learning_rate = from.number("learningRate"),
                      .beta1 = from.number("beta1"),
                      .beta2 = from.number("beta2"),
                      .epsilon = from.number("epsilon"),
                      .weight_decay = from.number("weightDecay"),
                      .max_gradient_norm = from.number("maxGradientNorm")};
  return start_work<PendingNumber>(info, [plan = unwrap<TrainingPlan>(info[1]), options](
                                             PendingNumber* job, ThreadPool& pool, const std::atomic<bool>&) {
    job->number = plan->update(pool, options);
  });
}

Napi::Value read_training(const Napi::CallbackInfo& info) {
  return start_work<PendingValues>(info, [plan = unwrap<TrainingPlan>(info[1]), state = read_state(info[2])](
                                             PendingValues* job, ThreadPool&, const std::atomic<bool>&) {
    job->values = plan->read(state);
  });
}

Napi::Value write_training(const Napi::CallbackInfo& info) {
  return start_work<PendingNumber>(
      info, [plan = unwrap<TrainingPlan>(info[1]), state = read_state(info[2]),
             values = vector_of<float, Napi::Float32Array>(info[3])](
                PendingNumber*, ThreadPool&, const std::atomic<bool>&) { plan->write(state, values); });
}

}  // namespace niwaki::node
