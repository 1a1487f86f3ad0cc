#include "niwaki/step.h"

#include <algorithm>
#include <span>

#include "exports.h"
#include "handle.h"
#include "jobs.h"
#include "niwaki/adapter.h"

// Steps cross the border as flat arrays, written and read by src/step-layout.ts:
//   sequences, Int32Array, each    rowCount, contextLength, number of blocks, blocks...
//   samples, Float64Array, each    output, temperature, topK, topP, minP, repetition, presence, frequency,
//   seed (low 32
//                                  bits, high 32 bits), logprobs, number of history tokens, number of biases,
//                                  number of stop tokens, history..., (token, bias)..., stop tokens...
//   adapters, Float64Array, each   sequence, slot, weight
//   result, Float64Array, each     token, logprob, number of top tokens, (token, logprob)...
// A result is an array of it, the logits or null, and the milliseconds that the step waited; samples that are
// handed over early are an array of them and these milliseconds.

namespace niwaki::node {
namespace {

template <class Array>
auto span_of(Napi::Value value) {
  const auto array = value.As<Array>();
  return std::span(array.Data(), array.ElementLength());
}

std::vector<StepSequence> read_sequences(std::span<const int32_t> from) {
  std::vector<StepSequence> sequences;
  for (size_t at = 0; at < from.size();) {
    const auto blocks = from.subspan(at + 3, static_cast<size_t>(from[at + 2]));
    sequences.push_back({.row_count = from[at],
                         .context_length = from[at + 1],
                         .block_table = std::vector(blocks.begin(), blocks.end())});
    at += 3 + blocks.size();
  }
  return sequences;
}

void read_adapters(std::span<const double> from, std::vector<StepSequence>& sequences) {
  for (size_t at = 0; at < from.size(); at += 3) {
    sequences[static_cast<size_t>(from[at])].adapters.push_back(
        {.slot = static_cast<int32_t>(from[at + 1]), .weight = static_cast<float>(from[at + 2])});
  }
}

std::vector<SampleSpec> read_samples(std::span<const double> from) {
  std::vector<SampleSpec> samples;
  size_t at = 0;
  const auto next = [&] { return from[at++]; };
  const auto next_int = [&] { return static_cast<int32_t>(from[at++]); };
  const auto next_float = [&] { return static_cast<float>(from[at++]); };
  while (at < from.size()) {
    SampleSpec sample;
    sample.output = next_int();
    sample.temperature = next_float();
    sample.top_k = next_int();
    sample.top_p = next_float();
    sample.min_p = next_float();
    sample.repetition_penalty = next_float();
    sample.presence_penalty = next_float();
    sample.frequency_penalty = next_float();
    sample.seed = static_cast<uint64_t>(next());
    sample.seed |= static_cast<uint64_t>(next()) << 32;
    sample.logprobs = next_int();
    sample.history.resize(static_cast<size_t>(next()));
    sample.bias.resize(static_cast<size_t>(next()));
    sample.stop_tokens.resize(static_cast<size_t>(next()));
    for (auto& token : sample.history) token = next_int();
    for (auto& [token, bias] : sample.bias) {
      token = next_int();
      bias = next_float();
    }
    for (auto& token : sample.stop_tokens) token = next_int();
    samples.push_back(std::move(sample));
  }
  return samples;
}

Napi::Value write_samples(Napi::Env env, const std::vector<SampleResult>& samples) {
  size_t size = 0;
  for (const auto& sample : samples) size += 3 + 2 * sample.top.size();
  auto array = Napi::Float64Array::New(env, size);
  double* to = array.Data();
  for (const auto& sample : samples) {
    *to++ = sample.token;
    *to++ = sample.logprob;
    *to++ = static_cast<double>(sample.top.size());
    for (const auto& [token, logprob] : sample.top) {
      *to++ = token;
      *to++ = logprob;
    }
  }
  return array;
}

/// The logits, without a copy where the runtime allows it: those of a long prompt are hundreds of megabytes.
Napi::Value write_logits(Napi::Env env, std::vector<float> logits) {
  const size_t size = logits.size();
  if (size == 0) return Napi::Float32Array::New(env, 0);
  auto* owner = new std::vector<float>(std::move(logits));
  const auto buffer = Napi::Buffer<float>::NewOrCopy(
      env, owner->data(), size, [](Napi::BasicEnv, float*, std::vector<float>* done) { delete done; }, owner);
  return Napi::Float32Array::New(env, size, buffer.ArrayBuffer(), buffer.ByteOffset());
}

class EarlySamples final : public JobPart {
 public:
  EarlySamples(std::vector<SampleResult> samples, double waited)
      : samples_(std::move(samples)), waited_(waited) {}
  Napi::Value value(Napi::Env env) override {
    auto parts = Napi::Array::New(env, 2);
    parts.Set(uint32_t{0}, write_samples(env, samples_));
    parts.Set(uint32_t{1}, 1000 * waited_);
    return parts;
  }

 private:
  std::vector<SampleResult> samples_;
  double waited_;
};

class PendingStep final : public PendingJob {
 public:
  Napi::Value result(Napi::Env env) override {
    auto parts = Napi::Array::New(env, 3);
    parts.Set(uint32_t{0}, write_samples(env, step.samples));
    parts.Set(uint32_t{1}, want_logits ? write_logits(env, std::move(step.logits)) : env.Null());
    parts.Set(uint32_t{2}, 1000 * step.waited);
    return parts;
  }

  StepResult step;
  bool want_logits = false;
};

}  // namespace

Napi::Value run_plan(const Napi::CallbackInfo& info) {
  const auto tokens = span_of<Napi::Int32Array>(info[2]);
  const auto outputs = span_of<Napi::Int32Array>(info[4]);
  Step step{.tokens = {tokens.begin(), tokens.end()},
            .sequences = read_sequences(span_of<Napi::Int32Array>(info[3])),
            .outputs = {outputs.begin(), outputs.end()},
            .samples = read_samples(span_of<Napi::Float64Array>(info[5])),
            .adapter_slots = info[7].IsNull() ? nullptr : unwrap<AdapterSlots>(info[7]),
            .want_logits = info[8].As<Napi::Boolean>().Value(),
            .following = info[9].As<Napi::Number>().Int32Value(),
            .samples_within = info[10].As<Napi::Number>().DoubleValue() / 1000};
  read_adapters(span_of<Napi::Float64Array>(info[6]), step.sequences);

  auto pending = std::make_unique<PendingStep>();
  pending->device = unwrap<Device>(info[0]);
  pending->want_logits = step.want_logits;
  const bool early = info[11].IsFunction();
  if (early) pending->on_part = Napi::Persistent(info[11].As<Napi::Function>());
  pending->callback = Napi::Persistent(info[12].As<Napi::Function>());
  auto plan = unwrap<Plan>(info[1]);
  return start_job(info.Env(), std::move(pending),
                   [&](PendingStep* job, const std::shared_ptr<JobQueue>& queue) {
                     const auto done = [job, queue](std::exception_ptr error, StepResult result) {
                       job->error = error;
                       job->step = std::move(result);
                       queue->complete(job);
                     };
                     const auto ready = [job, queue](std::vector<SampleResult> samples, double waited) {
                       queue->hand_over(job, std::make_unique<EarlySamples>(std::move(samples), waited));
                     };
                     return job->device->run(std::move(plan), std::move(step), done,
                                             early ? Device::SamplesReady(ready) : nullptr);
                   });
}

}  // namespace niwaki::node
