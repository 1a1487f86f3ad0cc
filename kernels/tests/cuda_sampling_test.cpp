#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/sampling.h"
#include "cpu/tier.h"
#include "cuda/memory.h"
#include "cuda/sampling.h"
#include "niwaki/error.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki;
using cuda::CudaSampler;
using niwaki::test::Random;

namespace {

template <class T>
class Device {
 public:
  explicit Device(size_t count) {
    cuda::check(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(T)), "test");
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) { upload(values); }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data_); }
  void upload(const std::vector<T>& values) {
    cuda::check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "test");
  }
  std::vector<T> download(size_t count) const {
    std::vector<T> values(count);
    cuda::check(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), "test");
    return values;
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

using Logits = std::vector<std::vector<float>>;

std::string name(size_t sample) {
  return "sample " + std::to_string(sample);
}

/// Output i of a step has logits[i] and stands at position first_position + i.
SampleResult on_cpu(const Logits& logits, const SampleSpec& spec, size_t sample, int32_t first_position) {
  static Sampler sampler;
  const std::vector<float>& row = logits[static_cast<size_t>(spec.output)];
  return sampler.sample(available_tiers().front()->rows, row.data(), static_cast<int64_t>(row.size()), spec,
                        int64_t{first_position} + spec.output + 1, name(sample));
}

std::vector<SampleResult> on_gpu(CudaSampler& sampler, const Logits& logits,
                                 const std::vector<SampleSpec>& samples, int32_t first_position,
                                 bool as_any = false) {
  const size_t stride = logits[0].size() + 3;
  std::vector<float> flat(logits.size() * stride, NAN);
  std::vector<int32_t> outputs, positions(2 * logits.size() + 1, -7);
  for (size_t i = 0; i < logits.size(); ++i) {
    std::copy(logits[i].begin(), logits[i].end(), flat.begin() + static_cast<int64_t>(i * stride));
    outputs.push_back(static_cast<int32_t>(2 * i + 1));
    positions[2 * i + 1] = first_position + static_cast<int32_t>(i);
  }
  const Device<float> device_logits(flat);
  const Device<int32_t> device_outputs(outputs), device_positions(positions), next_tokens(samples.size() + 1);
  cuda::StepView view{};
  view.outputs = device_outputs.get();
  view.positions = device_positions.get();
  const Device<unsigned long long> first_bad(std::vector{7ull << 32});
  view.first_bad = first_bad.get();

  Step step;
  step.outputs = outputs;
  step.samples = samples;
  std::vector<std::byte> staging(CudaSampler::packed_bytes(step));
  Device<std::byte> table(staging);
  const cuda::PinnedMemory results(CudaSampler::result_bytes(step));
  sampler.pack(step, staging.data(), table.get(), results.at<std::byte>());
  table.upload(staging);
  const auto bucket = static_cast<int32_t>(samples.size() + 1);
  sampler.launch(nullptr, as_any ? CudaSampler::Kind::kAny : CudaSampler::kind_of(step), bucket, view,
                 table.get(), device_logits.get(), static_cast<int64_t>(stride), next_tokens.get());
  const std::vector<int32_t> next = next_tokens.download(samples.size());
  CHECK(*results.at<unsigned long long>() == 7ull << 32);
  const std::vector<SampleResult> unpacked = CudaSampler::unpack(step, results.at<std::byte>(), name);
  for (size_t i = 0; i < samples.size(); ++i) CHECK(unpacked[i].token == next[i]);
  return unpacked;
}

bool close(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= 1e-5f * std::max(1.0f, std::fabs(b) / 64);
}

void check_result(const SampleResult& gpu, const SampleResult& cpu, const SampleSpec& spec,
                  size_t vocabulary) {
  bool same = gpu.token == cpu.token && close(gpu.logprob, cpu.logprob) && gpu.top.size() == cpu.top.size();
  for (size_t i = 0; same && i < cpu.top.size(); ++i) {
    same = gpu.top[i].token == cpu.top[i].token && close(gpu.top[i].logprob, cpu.top[i].logprob);
  }
  CHECK(same);
  if (same) return;
  std::printf(
      "  of %zu tokens: %d, not %d (%.9g, %.9g, top %zu, %zu); temperature %g top_k %d top_p %g min_p %g "
      "logprobs %d bias %zu history %zu\n",
      vocabulary, gpu.token, cpu.token, static_cast<double>(gpu.logprob), static_cast<double>(cpu.logprob),
      gpu.top.size(), cpu.top.size(), static_cast<double>(spec.temperature), spec.top_k,
      static_cast<double>(spec.top_p), static_cast<double>(spec.min_p), spec.logprobs, spec.bias.size(),
      spec.history.size());
}

/// All samples of a step on both sides.
void compare(CudaSampler& sampler, const Logits& logits, const std::vector<SampleSpec>& samples,
             int32_t first_position) {
  const std::vector<SampleResult> results = on_gpu(sampler, logits, samples, first_position);
  for (size_t i = 0; i < samples.size(); ++i) {
    check_result(results[i], on_cpu(logits, samples[i], i, first_position), samples[i], logits[0].size());
  }
}

template <class T>
T one_of(Random& random, const std::vector<T>& values) {
  return values[static_cast<size_t>(random.below(static_cast<int64_t>(values.size())))];
}

std::vector<float> random_logits(Random& random, int32_t vocabulary) {
  std::vector<float> x =
      random.normals(static_cast<size_t>(vocabulary), one_of<float>(random, {0.01f, 0.5f, 2, 5, 1e4f}));
  switch (random.below(5)) {
    case 0:  // ties
      for (float& v : x) v = std::round(v * 4) / 4;
      break;
    case 1:
      for (float& v : x) v = random.below(2) == 0 ? 0.0f : -0.0f;
      break;
    case 2:  // the most likely in a cluster
      for (int32_t i = 0; i < vocabulary / 50; ++i) x[static_cast<size_t>(i)] += 10;
      break;
  }
  return x;
}

SampleSpec random_spec(Random& random, int32_t vocabulary) {
  const auto token = [&] { return static_cast<int32_t>(random.below(vocabulary)); };
  SampleSpec spec;
  spec.seed = random.next();
  spec.temperature = one_of<float>(random, {0, 0.7f, 1, 1, 1.5f, 1e-30f, 1e30f, 100});
  if (random.below(2) == 0)
    spec.top_k = one_of<int32_t>(random, {1, 2, 20, 50, 300, 600, vocabulary - 1, vocabulary, 1 << 30});
  spec.top_k = std::max(spec.top_k, 0);
  if (random.below(2) == 0)
    spec.top_p = one_of<float>(random, {0, 1e-6f, 0.25f, 0.5f, 0.9f, 0.95f, 0.999f, 0x1.fffffep-1f});
  if (random.below(3) == 0) spec.min_p = one_of<float>(random, {1e-9f, 0.01f, 0.3f, 1});
  if (random.below(3) == 0) {
    spec.repetition_penalty = one_of<float>(random, {1, 0.5f, 1.3f, 1e30f});
    spec.presence_penalty = one_of<float>(random, {0, 0.5f, -2, 3e38f});
    spec.frequency_penalty = one_of<float>(random, {0, 0.25f, -1, 3e38f});
    for (int64_t n = random.below(40); n > 0; --n) {
      spec.history.push_back(spec.history.empty() || random.below(2) == 0 ? token() : spec.history[0]);
    }
  }
  if (random.below(3) == 0) {
    for (int64_t n = random.below(20); n > 0; --n) {
      const float bias = one_of<float>(random, {-INFINITY, -3, 0.5f, 4, 3e38f, -3e38f});
      if (bias != -INFINITY || vocabulary > 20)
        spec.bias.emplace_back(random.below(3) == 0 && n > 1 ? 0 : token(), bias);
    }
  }
  if (random.below(3) == 0) spec.logprobs = std::min(vocabulary, one_of<int32_t>(random, {0, 1, 5, 20, 500}));
  return spec;
}

void compare_random(uint64_t seed, int32_t vocabulary, int steps) {
  Random random(seed);
  CudaSampler sampler(5, vocabulary);
  for (int i = 0; i < steps; ++i) {
    Logits logits;
    for (int64_t n = 1 + random.below(3); n > 0; --n) logits.push_back(random_logits(random, vocabulary));
    std::vector<SampleSpec> samples;
    for (int64_t n = 1 + random.below(4); n > 0; --n) {
      samples.push_back(random_spec(random, vocabulary));
      samples.back().output = static_cast<int32_t>(random.below(static_cast<int64_t>(logits.size())));
    }
    compare(sampler, logits, samples, static_cast<int32_t>(random.below(100'000)));
  }
}

template <class F>
bool throws(ErrorCode code, const std::string& text, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code == code && error.what() == text;
  }
  return false;
}

}  // namespace

TEST(greedy_takes_the_first_of_the_largest) {
  Random random(1);
  for (const int32_t vocabulary : {1, 2, 31, 4096, 4097, 20'000}) {
    CudaSampler sampler(4, vocabulary);
    for (int i = 0; i < 30; ++i) {
      const Logits logits{random_logits(random, vocabulary), random_logits(random, vocabulary),
                          random_logits(random, vocabulary)};
      std::vector<SampleSpec> samples(3);
      for (int32_t s = 0; s < 3; ++s) samples[static_cast<size_t>(s)].output = 2 - s;
      for (const bool as_any : {false, true}) {
        const auto results = on_gpu(sampler, logits, samples, 0, as_any);
        for (size_t s = 0; s < 3; ++s)
          check_result(results[s], on_cpu(logits, samples[s], s, 0), samples[s], logits[0].size());
      }
    }
  }
}

TEST(random_samples_are_those_of_the_cpu) {
  for (const int32_t vocabulary : {1, 2, 3, 7, 30, 40})
    compare_random(static_cast<uint64_t>(vocabulary), vocabulary, 120);
  compare_random(10, 1000, 200);
  compare_random(11, 4096, 40);
  compare_random(12, 4097, 40);
  compare_random(13, 9000, 60);
}

TEST(a_large_vocabulary) {
  Random random(20);
  CudaSampler sampler(8, 151'669);
  const Logits logits{random.normals(151'669, 2.5f), random_logits(random, 151'669)};
  std::vector<SampleSpec> samples(8);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].temperature = 0.8f;
    samples[i].seed = i;
    samples[i].output = static_cast<int32_t>(i % 2);
  }
  samples[0].temperature = 0;
  samples[1].top_k = 20;
  samples[1].top_p = 0.95f;
  samples[2].top_p = 0.9f;
  samples[2].temperature = 0.3f;
  samples[3].min_p = 0.05f;
  samples[4].logprobs = 20;
  samples[4].history = {3, 3, 8, 151'668};
  samples[4].frequency_penalty = 1;
  samples[5].logprobs = 5000;  // more than candidates are kept
  samples[6].top_p = 0.95f;    // a large nucleus
  samples[6].temperature = 2;
  samples[6].bias = {{5, -INFINITY}, {100'000, 2}};
  samples[7].top_k = 10'000;
  compare(sampler, logits, samples, 77);
}

TEST(draws_follow_seed_and_position) {
  Random random(30);
  CudaSampler sampler(3, 2000);
  const Logits logits{random.normals(2000, 1), random.normals(2000, 1), random.normals(2000, 1)};
  std::vector<int32_t> tokens;
  for (int32_t position = 0; position < 40; ++position) {
    std::vector<SampleSpec> samples(3);
    for (int32_t i = 0; i < 3; ++i) {
      samples[static_cast<size_t>(i)].output = i;
      samples[static_cast<size_t>(i)].temperature = 1;
      samples[static_cast<size_t>(i)].seed = ~0ull - static_cast<uint64_t>(i);
    }
    samples[1].top_p = 0.9f;
    samples[2].top_k = 100;
    const auto results = on_gpu(sampler, logits, samples, position);
    tokens.push_back(results[0].token);
    compare(sampler, logits, samples, INT32_MAX - 10 - position);
  }
  std::sort(tokens.begin(), tokens.end());
  CHECK(std::unique(tokens.begin(), tokens.end()) - tokens.begin() > 25);
}

TEST(a_result_does_not_depend_on_the_rest_of_the_step) {
  Random random(40);
  const int32_t vocabulary = 5000;
  CudaSampler many(16, vocabulary), one(1, vocabulary);
  Logits logits;
  std::vector<SampleSpec> samples;
  for (int32_t i = 0; i < 16; ++i) {
    logits.push_back(random_logits(random, vocabulary));
    samples.push_back(random_spec(random, vocabulary));
    samples.back().output = i;
  }
  const auto together = on_gpu(many, logits, samples, 1000);
  for (int32_t i = 0; i < 16; ++i) {
    SampleSpec spec = samples[static_cast<size_t>(i)];
    spec.output = 0;
    const SampleResult alone = on_gpu(one, {logits[static_cast<size_t>(i)]}, {spec}, 1000 + i)[0];
    const SampleResult& batched = together[static_cast<size_t>(i)];
    CHECK(alone.token == batched.token && alone.top.size() == batched.top.size());
    CHECK(std::memcmp(&alone.logprob, &batched.logprob, sizeof(float)) == 0);
    for (size_t t = 0; t < alone.top.size(); ++t) {
      CHECK(alone.top[t].token == batched.top[t].token && alone.top[t].logprob == batched.top[t].logprob);
    }
  }
}

TEST(failures_are_those_of_the_cpu_and_harm_no_one_else) {
  CudaSampler sampler(3, 6000);
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
    Logits logits(2, std::vector<float>(6000, 1));
    logits[1][5999] = bad;
    for (const float temperature : {0.0f, 1.0f}) {
      std::vector<SampleSpec> samples(3);
      samples[1].output = 1;
      samples[1].temperature = samples[2].temperature = temperature;
      CHECK(throws(ErrorCode::kNonFinite, "sample 1: the logits hold NaN or infinity",
                   [&] { on_gpu(sampler, logits, samples, 0); }));
      samples[1].output = 0;
      compare(sampler, logits, samples, 0);
    }
  }
  CudaSampler small(1, 3);
  SampleSpec spec;
  spec.bias = {{2, -INFINITY}, {0, -INFINITY}, {1, 5}, {1, -INFINITY}};
  for (const float temperature : {0.0f, 1.0f}) {
    spec.temperature = temperature;
    CHECK(throws(ErrorCode::kInvalidArgument, "sample 0: the logit biases ban every token", [&] {
      on_gpu(small, {{1, 2, 3}}, {spec}, 0);
    }));
  }
}

TEST(what_does_not_fit_is_refused) {
  Step step;
  step.samples.resize(3);
  CudaSampler sampler(2, 10);
  std::vector<std::byte> staging(CudaSampler::packed_bytes(step));
  CHECK(throws(ErrorCode::kUnsupported, "step: a GPU takes at most 2 samples, got 3; make more steps of them",
               [&] { sampler.pack(step, staging.data(), nullptr, nullptr); }));
  CHECK(throws(ErrorCode::kUnsupported,
               "sampling on a GPU: the vocabulary may have at most 1048576 tokens, got 1048577",
               [] { CudaSampler(1, (1 << 20) + 1); }));
}

TEST(a_captured_graph_serves_other_steps) {
  Random random(50);
  const int32_t vocabulary = 4500;
  CudaSampler sampler(4, vocabulary);
  cudaStream_t stream;
  cuda::check(cudaStreamCreate(&stream), "test");
  Device<float> logits(static_cast<size_t>(4 * vocabulary));
  Device<int32_t> outputs(std::vector<int32_t>{0, 1, 2, 3}), positions(4), next_tokens(4);
  cuda::StepView view{};
  view.outputs = outputs.get();
  view.positions = positions.get();
  const Device<unsigned long long> first_bad(std::vector{~0ull});
  view.first_bad = first_bad.get();
  Device<std::byte> table(1 << 16);

  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test");
  sampler.launch(stream, CudaSampler::Kind::kAny, 4, view, table.get(), logits.get(), vocabulary,
                 next_tokens.get());
  cuda::check(cudaStreamEndCapture(stream, &graph), "test");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "test");

  for (int32_t round = 0; round < 6; ++round) {
    Logits rows;
    std::vector<float> flat;
    Step step;
    for (int32_t i = 0; i < 4; ++i) {
      rows.push_back(random_logits(random, vocabulary));
      flat.insert(flat.end(), rows.back().begin(), rows.back().end());
      if (i > round % 4) continue;
      step.samples.push_back(random_spec(random, vocabulary));
      step.samples.back().output = i;
      if (round == 3) step.samples.back().logprobs = 500;
    }
    logits.upload(flat);
    positions.upload({round, round + 1, round + 2, round + 3});
    next_tokens.upload({-1, -1, -1, -1});
    std::vector<std::byte> staging(CudaSampler::packed_bytes(step));
    const cuda::PinnedMemory results(CudaSampler::result_bytes(step));
    sampler.pack(step, staging.data(), table.get(), results.at<std::byte>());
    table.upload(staging);
    cuda::check(cudaGraphLaunch(exec, stream), "test");
    cuda::check(cudaStreamSynchronize(stream), "test");
    const auto unpacked = CudaSampler::unpack(step, results.at<std::byte>(), name);
    const std::vector<int32_t> next = next_tokens.download(4);
    for (size_t i = 0; i < 4; ++i) {
      CHECK(next[i] == (i < unpacked.size() ? unpacked[i].token : -1));
      if (i < unpacked.size()) {
        check_result(unpacked[i], on_cpu(rows, step.samples[i], i, round), step.samples[i], rows[i].size());
      }
    }
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_MAIN()
