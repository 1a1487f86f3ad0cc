#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <future>
#include <numeric>

#ifdef NIWAKI_CUDA_EMULATED
#include "cuda/emulated/threads.h"
#endif
#include "niwaki/cuda.h"
#include "src/queued_device.h"
#include "tests/adapters.h"
#include "tests/check.h"
#include "tests/errors.h"
#include "tests/hold.h"
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

/// Calls f; on the emulator once with all that is put into a stream as late as it may be, and once at once.
template <class F>
void in_any_order(F&& f) {
#ifdef NIWAKI_CUDA_EMULATED
  using namespace niwaki::cuda::emulated;
  for (const Async async : {Async::kEarly, Async::kLate}) {
    set_async(async);
    f();
  }
#else
  f();
#endif
}

/// The rows of a prompt and two decode rows, greedy and drawn, and what may follow them.
Step three_sequences(int32_t following, bool greedy = false) {
  Step step;
  step.tokens = random_tokens(8, 8);
  step.sequences = {{6, 6, {0, 7, 9}}, {1, 1, {3, 2, 11}}, {1, 1, {21, 5, 8}}};
  step.outputs = {5, 6, 7};
  step.samples.resize(3);
  for (int32_t i = 0; i < 3; ++i) step.samples[static_cast<size_t>(i)].output = i;
  if (!greedy) {
    step.samples[0].temperature = 1.5f;
    step.samples[0].seed = 11;
    step.samples[0].top_k = 50;
    step.samples[0].top_p = 0.95f;
    step.samples[1].logprobs = 2;
    step.samples[1].bias = {{7, 1.5f}, {9, -INFINITY}};
    step.samples[2].temperature = 0.8f;
    step.samples[2].seed = 12;
    step.samples[2].logprobs = 0;
  }
  step.following = following;
  return step;
}

/// What `count` steps choose that are run one by one.
std::vector<SampleResult> one_by_one(Device& device, const std::shared_ptr<Plan>& plan, Step step,
                                     int count) {
  step.following = 0;
  std::vector<SampleResult> chosen;
  for (int i = 0; i < count; ++i) {
    const StepResult result = run(device, plan, step);
    chosen.insert(chosen.end(), result.samples.begin(), result.samples.end());
    become_following(step);
    for (size_t s = 0; s < result.samples.size(); ++s) step.tokens[s] = result.samples[s].token;
  }
  return chosen;
}

bool same(const SampleResult& a, const SampleResult& b) {
  const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
  return a.token == b.token && bits(a.logprob) == bits(b.logprob) &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(),
                    [&](const auto& x, const auto& y) {
                      return x.token == y.token && bits(x.logprob) == bits(y.logprob);
                    });
}

/// Whether `samples` are the first of `expected`, of so many steps of three sequences.
bool are_first(const std::vector<SampleResult>& samples, const std::vector<SampleResult>& expected,
               size_t steps) {
  return samples.size() == 3 * steps && std::equal(samples.begin(), samples.end(), expected.begin(), same);
}

/// A plan whose embedding of one token is beyond what float16 has, and of all others as in another such plan.
std::shared_ptr<Plan> plan_with_a_bad_token(Device& device, const MiniModel& model, int32_t token) {
  PlanSpec spec = make_spec(device, model);
  auto values = std::make_shared<std::vector<float>>(
      Random(77).normals(static_cast<size_t>(model.vocabulary) * static_cast<size_t>(model.hidden), 1));
  if (token >= 0) std::fill_n(values->begin() + int64_t{token} * model.hidden, model.hidden, 3e38f);
  std::get<EmbedOp>(spec.ops[0].op).table = load(
      device, {{"table", DataType::kF32, model.vocabulary, reinterpret_cast<const uint8_t*>(values->data())}},
      model.hidden, values);
  return device.compile(std::move(spec));
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
  in_any_order([] {
    for (const KvType type : {KvType::kF16, KvType::kQ8}) {
      const MiniModel model = model_of(type, type == KvType::kF16);
      const auto device = library().open(0);
      const auto plan = device->compile(make_spec(*device, model));
      for (const bool greedy : {false, true}) {
        const Step step = three_sequences(13, greedy);
        const std::vector<SampleResult> expected = one_by_one(*device, plan, step, 14);
        CHECK(are_first(run(*device, plan, step).samples, expected, 14));
        CHECK(are_first(run(*device, plan, three_sequences(1, greedy)).samples, expected, 2));
        CHECK(are_first(run(*device, plan, three_sequences(0, greedy)).samples, expected, 1));
      }
    }
  });
}

TEST(steps_that_follow_end_with_a_stop_token_and_leave_the_rest_as_it_was) {
  in_any_order([] {
    const auto device = library().open(0);
    const auto plan = device->compile(make_spec(*device, model_of(KvType::kF16, true)));
    const std::vector<SampleResult> expected = one_by_one(*device, plan, three_sequences(13), 14);
    for (const size_t i : {1u, 8u, 12u, 41u}) {
      Step step = three_sequences(13);
      step.samples[i % 3].stop_tokens = {299, expected[i].token};
      size_t first = i % 3;
      while (expected[first].token != expected[i].token && expected[first].token != 299) first += 3;
      const size_t steps = first / 3 + 1;
      CHECK(are_first(run(*device, plan, step).samples, expected, steps));

      // Went on with at once: a step that was begun in vain changed nothing that is read.
      if (steps == 14) continue;
      for (size_t s = 0; s < steps; ++s) become_following(step);
      for (size_t s = 0; s < 3; ++s) step.tokens[s] = expected[3 * (steps - 1) + s].token;
      step.following = 13 - static_cast<int32_t>(steps);
      step.samples[i % 3].stop_tokens.clear();
      const StepResult rest = run(*device, plan, step);
      CHECK(are_first(rest.samples, {expected.begin() + 3 * static_cast<int64_t>(steps), expected.end()},
                      14 - steps));
    }
  });
}

TEST(blocks_of_steps_that_ended_are_free) {
  in_any_order([] {
    const auto device = library().open(0);
    const PlanSpec spec = make_spec(*device, model_of(KvType::kF16, true));
    const auto plan = device->compile(spec);
    const auto kv = std::get<KvStoreOp>(std::find_if(spec.ops.begin(), spec.ops.end(),
                                                     [](const LabeledOp& op) {
                                                       return std::holds_alternative<KvStoreOp>(op.op);
                                                     })
                                            ->op)
                        .kv;
    Step step;
    step.tokens = random_tokens(16, 8);
    step.sequences = {{16, 16, {0, 1}}};
    step.outputs = {15};
    step.samples.resize(1);
    step.following = 4;
    const int32_t first = run(*device, plan, step).samples[0].token;
    // What runs in vain after the first step would write to block 1.
    step.samples[0].stop_tokens = {first};
    const std::vector<std::byte> bytes(kv->all_layers_bytes(), std::byte{0x3c});
    std::vector<std::byte> read(bytes.size());
    CHECK(run(*device, plan, step).samples.size() == 1);
    kv->write_block(1, bytes.data());
    step.following = 0;
    step.sequences[0].block_table = {5};
    run(*device, plan, step);
    kv->read_block(1, read.data());
    CHECK(read == bytes);
  });
}

TEST(steps_that_follow_with_adapters) {
  in_any_order([] {
    const auto device = library().open(0);
    const auto plan = device->compile(make_spec(*device, {}));
    const Pair a("blk.0.ffn_gate_up.0", 384, 256, 4, DataType::kF16, 5),
        b("blk.1.attn_output.0", 256, 256, 8, DataType::kF16, 9);
    const auto slots =
        make_slots(*device, plan, {2, 8, AdapterType::kF16, {a.target.tensor, b.target.tensor}});
    load(*device, slots, 0, {a.target, b.target});
    load(*device, slots, 1, {b.target});
    Step step = three_sequences(13);
    const std::vector<SampleResult> plain = one_by_one(*device, plan, step, 14);
    step.adapter_slots = slots;
    step.sequences[0].adapters = {{0, 1}};
    step.sequences[2].adapters = {{1, 0.5f}, {0, -1}};
    const std::vector<SampleResult> expected = one_by_one(*device, plan, step, 14);
    CHECK(!are_first(plain, expected, 14));
    CHECK(are_first(run(*device, plan, step).samples, expected, 14));
    CHECK(are_first(run(*device, plan, three_sequences(13)).samples, plain, 14));
  });
}

TEST(what_is_not_finite_in_a_step_that_follows_is_named_unless_it_ran_in_vain) {
  in_any_order([] {
    const auto device = library().open(0);
    const MiniModel model = model_of(KvType::kF16, true);
    Step step;
    step.tokens = {5, 6, 7};
    step.sequences = {{3, 3, {1, 2}}};
    step.outputs = {2};
    step.samples.resize(1);
    step.samples[0].temperature = 1;
    step.samples[0].seed = 4;
    step.following = 20;
    const auto samples = run(*device, plan_with_a_bad_token(*device, model, -1), step).samples;
    size_t at = 9;  // of a token that no step before has chosen
    const auto chosen = [&](size_t i) { return samples[i].token; };
    for (size_t i = 0; i < at; ++i) {
      if (chosen(i) != chosen(at) && chosen(at) > 7) continue;
      i = 0;
      ++at;
    }
    CHECK(at < 20);
    const auto plan = plan_with_a_bad_token(*device, model, chosen(at));
    std::promise<std::vector<SampleResult>> ended;
    std::exception_ptr failed;
    device->run(plan, step, [&](std::exception_ptr failure, StepResult result) {
      failed = failure;
      ended.set_value(std::move(result.samples));
    });
    const auto before = ended.get_future().get();
    CHECK(before.size() == at + 1 && std::equal(before.begin(), before.end(), samples.begin(), same));
    const std::string message = message_of(ErrorCode::kNonFinite, [&] { std::rethrow_exception(failed); });
    CHECK(contains(message, "row 0 (sequence 0, position " + std::to_string(3 + at) + ")") &&
          contains(message, "blk.0.attn_norm"));

    // The step after the last one fails, too, and nobody asked for it.
    step.samples[0].stop_tokens = {chosen(at)};
    CHECK(run(*device, plan, step).samples.size() == at + 1);
    step.samples[0].stop_tokens.clear();
    step.following = static_cast<int32_t>(at);
    const auto again = run(*device, plan, step).samples;
    CHECK(again.size() == at + 1 && std::equal(again.begin(), again.end(), samples.begin(), same));
  });
}

TEST(steps_that_follow_are_handed_over_cancelled_and_finished) {
  in_any_order([] {
    const auto device = library().open(0);
    const auto plan = device->compile(make_spec(*device, {}));
    const std::vector<SampleResult> expected = one_by_one(*device, plan, three_sequences(19), 20);
    enum class Then { kNothing, kFinish, kCancel };
    for (const Then then : {Then::kNothing, Then::kFinish, Then::kCancel}) {
      Step step = three_sequences(19);
      step.samples_within = 0;
      Hold hold(*device);
      std::shared_ptr<Job> job;
      std::vector<SampleResult> samples;
      std::exception_ptr failed;
      size_t times = 0;
      std::promise<void> ended;
      job = device->run(
          plan, step,
          [&](std::exception_ptr failure, StepResult result) {
            failed = failure;
            samples.insert(samples.end(), result.samples.begin(), result.samples.end());
            ended.set_value();
          },
          [&](std::vector<SampleResult> early, double) {
            CHECK(early.size() == 3);
            samples.insert(samples.end(), early.begin(), early.end());
            if (++times == 4 && then == Then::kFinish) job->finish();
            if (times == 4 && then == Then::kCancel) job->cancel();
          });
      hold.release();
      ended.get_future().get();
      const size_t steps = then == Then::kNothing ? 20 : then == Then::kFinish ? 5 : 4;
      CHECK(are_first(samples, expected, steps) &&
            times == std::min<size_t>(steps, 4) + (steps == 20 ? 15 : 0));
      const std::string message = message_of(ErrorCode::kCancelled, [&] {
        if (failed) std::rethrow_exception(failed);
      });
      CHECK(message == (then == Then::kCancel ? "the step was cancelled" : "no error"));
    }
    CHECK(are_first(run(*device, plan, three_sequences(19)).samples, expected, 20));
  });
}

TEST(steps_find_more_room_as_they_need_it) {
  in_any_order([] {
    const auto device = library().open(0);
    MiniModel model;
    model.blocks = 2000;
    const auto plan = device->compile(make_spec(*device, model));
    const std::vector<SampleResult> expected = one_by_one(*device, plan, three_sequences(5), 6);
    CHECK(are_first(run(*device, plan, three_sequences(5)).samples, expected, 6));
    Step step = three_sequences(5);
    step.samples[1].logprobs = 300;
    for (int32_t token = 10; token < 299; ++token) step.samples[1].bias.emplace_back(token, 0.0f);
    for (StepSequence& sequence : step.sequences) sequence.block_table.resize(700, 0);
    auto result = run(*device, plan, step);
    for (SampleResult& sample : result.samples) {
      if (sample.top.size() == 300) sample.top.resize(2);
    }
    CHECK(are_first(result.samples, expected, 6));
    CHECK(are_first(run(*device, plan, three_sequences(5)).samples, expected, 6));
  });
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
