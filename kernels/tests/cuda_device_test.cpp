#include <algorithm>
#include <cmath>
#include <numeric>

#include "niwaki/cuda.h"
#include "tests/check.h"
#include "tests/errors.h"
#include "tests/mini_model.h"

using namespace niwaki;
using namespace niwaki::test;

extern "C" CudaLibrary* niwaki_cuda_library(int32_t abi);

namespace {

CudaLibrary& library() {
  return *niwaki_cuda_library(kCudaAbi);
}

std::vector<int32_t> random_tokens(int count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.below(300)));
  return tokens;
}

struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;
  std::vector<float> logits;
  int done = 0;
};

/// One step: the next `rows[i]` tokens of every sequence, with the logits of all.
void advance(Device& device, const std::shared_ptr<Plan>& plan, std::vector<Sequence*> sequences,
             std::vector<int> rows) {
  Step step;
  step.want_logits = true;
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    step.tokens.insert(step.tokens.end(), s.tokens.begin() + s.done, s.tokens.begin() + s.done + rows[i]);
    s.done += rows[i];
    step.sequences.push_back({rows[i], s.done, s.table});
  }
  step.outputs.resize(step.tokens.size());
  std::iota(step.outputs.begin(), step.outputs.end(), 0);
  const StepResult result = run(device, plan, step);
  auto from = result.logits.begin();
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->logits.insert(sequences[i]->logits.end(), from, from + rows[i] * 300);
    from += rows[i] * 300;
  }
}

/// Of the difference, to the whole.
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(error / norm);
}

MiniModel model_of(KvType type, bool groups_of_128) {
  MiniModel model;
  model.kv_type = type;
  if (groups_of_128) model.head_dim = 128;
  return model;
}

}  // namespace

TEST(the_same_sequence_has_the_same_bits) {
  const std::vector<int32_t> tokens = random_tokens(45, 3), table = {9, 2, 31};
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    for (const bool wide : {false, true}) {
      const MiniModel model = model_of(type, wide);
      const auto cpu = Device::open({1, ""});
      Sequence reference{tokens, table, {}};
      advance(*cpu, cpu->compile(make_spec(*cpu, model)), {&reference}, {45});

      const auto device = library().open(0);
      CHECK(device->tier() == "cuda" && device->threads() > 0);
      const auto plan = device->compile(make_spec(*device, model));
      std::vector<float> expected;
      const auto check = [&](const Sequence& s) {
        CHECK(s.logits.size() == 45 * 300);
        if (expected.empty()) expected = s.logits;
        CHECK(s.logits == expected);
      };
      for (const int chunk : {45, 1, 7, 16}) {
        Sequence s{tokens, table, {}};
        while (s.done < 45) advance(*device, plan, {&s}, {std::min(chunk, 45 - s.done)});
        check(s);
      }
      // Random weights make the logits depend on every bit; integers and their sums are the CPU's.
      CHECK(relative_error(expected, reference.logits) < 0.02);
      // Beside others: prompts and decode rows, before and behind it.
      Sequence s{tokens, table, {}}, a{random_tokens(60, 4), {0, 1, 3, 4}, {}},
          b{random_tokens(20, 5), {30, 8}, {}};
      advance(*device, plan, {&a, &s}, {30, 10});
      advance(*device, plan, {&s, &b}, {1, 20});
      advance(*device, plan, {&a, &s}, {1, 20});
      while (s.done < 45) advance(*device, plan, {&a, &s}, {1, 1});
      check(s);
    }
  }
}

TEST(steps_that_follow_choose_what_steps_one_by_one_do) {
  const MiniModel model = model_of(KvType::kF16, true);
  const auto device = library().open(0);
  const auto plan = device->compile(make_spec(*device, model));
  Step step;
  step.tokens = {5, 6, 7};
  step.sequences = {{3, 3, {1, 2}}};
  step.outputs = {2};
  step.samples = {{}};
  step.following = 20;
  const StepResult together = run(*device, plan, step);
  CHECK(together.samples.size() == 21);
  step.following = 0;
  std::vector<int32_t> one_by_one;
  for (int i = 0; i < 21; ++i) {
    const StepResult result = run(*device, plan, step);
    one_by_one.push_back(result.samples[0].token);
    step.tokens = {result.samples[0].token};
    step.sequences[0].row_count = 1;
    ++step.sequences[0].context_length;
    step.outputs = {0};
  }
  for (size_t i = 0; i < 21; ++i) CHECK(together.samples[i].token == one_by_one[i]);
}

TEST(what_is_not_finite_is_named) {
  const auto device = library().open(0);
  PlanSpec spec = make_spec(*device, {});
  auto weights = std::vector<float>(static_cast<size_t>(MiniModel{}.hidden), 1e30f);
  for (LabeledOp& labeled : spec.ops) {
    auto* norm = std::get_if<RmsNormOp>(&labeled.op);
    if (norm != nullptr && labeled.label == "blk.1.ffn_norm") {
      for (float& w : weights) w = 3e38f;
      norm->weight = std::make_shared<const Vector>("norm", weights);
    }
  }
  const auto plan = device->compile(std::move(spec));
  Step step;
  step.tokens = {5, 6};
  step.sequences = {{2, 2, {1}}};
  step.outputs = {1};
  const std::string message = message_of(ErrorCode::kNonFinite, [&] { run(*device, plan, step); });
  CHECK(contains(message, "blk.1.ffn_gate_up") && contains(message, "sequence 0, position 0"));
}

TEST(other_devices_things_are_refused) {
  const auto cpu = Device::open({1, ""});
  const auto device = library().open(0);
  const MiniModel model;
  const auto refused = [](ErrorCode code, const char* why, auto&& f) {
    CHECK(contains(message_of(code, f), why));
  };
  refused(ErrorCode::kInvalidArgument, "another device", [&] { device->compile(make_spec(*cpu, model)); });
  refused(ErrorCode::kInvalidArgument, "another device", [&] { cpu->compile(make_spec(*device, model)); });
  refused(ErrorCode::kUnsupported, "f16 or q8", [&] {
    device->create_kv_cache({1, 1, 64, 16, 4, KvType::kF32});
  });
  refused(ErrorCode::kUnsupported, "no GPU 7", [&] { library().open(7); });
}

TEST_MAIN()
