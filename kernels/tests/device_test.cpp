#include "niwaki/device.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <numeric>
#include <thread>

#include "tests/check.h"
#include "tests/errors.h"
#include "tests/hold.h"
#include "tests/mini_model.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

std::vector<int32_t> random_tokens(int count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random.below(300)));
  return tokens;
}

/// A sequence that is run bit by bit, with the logits of all its positions.
struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;
  std::vector<float> logits;
  int done = 0;
};

/// One step: the next `rows[i]` tokens of every sequence.
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

std::shared_ptr<Device> open(int threads, const std::string& tier = "") {
  return Device::open({threads, tier});
}

}  // namespace

TEST(the_same_sequence_has_the_same_bits) {
  const std::vector<int32_t> tokens = random_tokens(45, 3);
  const std::vector<int32_t> table = {9, 2, 31};
  for (const KvType type : {KvType::kF16, KvType::kF32, KvType::kQ8}) {
    MiniModel model;
    model.kv_type = type;
    std::vector<float> expected;
    const auto check = [&](const Sequence& s) {
      CHECK(s.logits.size() == 45 * 300);
      if (expected.empty()) {
        expected = s.logits;
        CHECK(std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); }));
      }
      CHECK(s.logits == expected);
    };
    for (const std::string& tier : Device::tiers()) {
      for (const int threads : {1, 2, 3}) {
        const auto device = open(threads, tier);
        CHECK(device->threads() == threads && device->tier() == tier);
        const auto plan = device->compile(make_spec(*device, model));
        for (const int chunk : {1, 7, 16, 45}) {
          if (threads == 2 && chunk == 1) continue;
          Sequence s{tokens, table, {}};
          while (s.done < 45) advance(*device, plan, {&s}, {std::min(chunk, 45 - s.done)});
          check(s);
        }
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
}

TEST(samples_come_from_the_logits_of_their_row) {
  const auto device = open(2);
  const auto plan = device->compile(make_spec(*device, {}));
  Step step;
  step.tokens = random_tokens(20, 6);
  step.sequences = {{12, 12, {0}}, {8, 8, {1}}};
  step.outputs = {11, 15, 19};
  step.want_logits = true;
  for (const int32_t output : {2, 0, 1, 0}) {
    SampleSpec spec;
    spec.output = output;
    spec.logprobs = 2;
    step.samples.push_back(spec);
  }
  step.samples[3].bias = {{0, 1e9f}};
  const StepResult result = run(*device, plan, step);
  CHECK(result.samples.size() == 4 && result.logits.size() == 900);
  for (size_t i = 0; i < 3; ++i) {
    const auto row = result.logits.begin() + step.samples[i].output * 300;
    CHECK(result.samples[i].token == std::max_element(row, row + 300) - row);
    CHECK(result.samples[i].top.size() == 2 && result.samples[i].top[0].token == result.samples[i].token);
    CHECK(result.samples[i].top[0].logprob == result.samples[i].logprob);
  }
  CHECK(result.samples[3].token == 0);

  // No outputs: a chunk in the middle of a prompt.
  Step chunk;
  chunk.tokens = {1, 2, 3};
  chunk.sequences = {{3, 3, {5}}};
  CHECK(run(*device, plan, chunk).samples.empty());

  // Two samples fail: the first one is named.
  for (const size_t i : {1u, 3u}) {
    step.samples[i].bias.clear();
    for (int32_t token = 0; token < 300; ++token) step.samples[i].bias.emplace_back(token, -INFINITY);
  }
  CHECK(contains(message_of(ErrorCode::kInvalidArgument, [&] { run(*device, plan, step); }),
                 "sample 1 of row 11 (sequence 0, position 11): the logit biases ban every token"));
}

/// A prompt's last rows and a decode row, drawn and greedy, and what may follow them.
Step step_with(int32_t following) {
  Step step;
  step.tokens = random_tokens(6, 8);
  step.sequences = {{5, 5, {0, 7}}, {1, 1, {3, 2}}};
  step.outputs = {4, 5};
  step.samples.resize(2);
  step.samples[0].temperature = 1;
  step.samples[0].seed = 11;
  step.samples[1].output = 1;
  step.samples[1].logprobs = 2;
  step.following = following;
  return step;
}

TEST(steps_that_follow_choose_what_they_do_one_by_one) {
  for (const int threads : {1, 2}) {
    const auto device = open(threads);
    const auto plan = device->compile(make_spec(*device, {}));
    Step step = step_with(0);
    std::vector<SampleResult> expected;
    for (int i = 0; i < 20; ++i) {
      const StepResult result = run(*device, plan, step);
      CHECK(result.samples.size() == 2);
      expected.insert(expected.end(), result.samples.begin(), result.samples.end());
      step.tokens = {result.samples[0].token, result.samples[1].token};
      step.outputs = {0, 1};
      for (StepSequence& sequence : step.sequences) {
        sequence.row_count = 1;
        ++sequence.context_length;
      }
    }
    const auto check = [&](const StepResult& result, size_t steps) {
      CHECK(result.samples.size() == 2 * steps);
      for (size_t i = 0; i < result.samples.size(); ++i) {
        CHECK(result.samples[i].token == expected[i].token);
        CHECK(result.samples[i].top.size() == (i % 2 == 0 ? 0u : 2u));
        if (i % 2 == 1) CHECK(result.samples[i].logprob == expected[i].logprob);
      }
    };
    check(run(*device, plan, step_with(19)), 20);
    check(run(*device, plan, step_with(1)), 2);

    // The first step that chooses a stop token is the last: that of either sequence, of which one counts.
    for (size_t i : {0u, 1u, 6u, 13u}) {
      Step stops = step_with(19);
      stops.samples[i % 2].stop_tokens = {299, expected[i].token};
      size_t first = i % 2;
      while (expected[first].token != expected[i].token && expected[first].token != 299) first += 2;
      check(run(*device, plan, stops), first / 2 + 1);
    }
  }
}

TEST(samples_of_steps_that_follow_are_handed_over_while_these_run) {
  const auto device = open(2);
  const auto plan = device->compile(make_spec(*device, {}));
  const std::vector<SampleResult> expected = run(*device, plan, step_with(19)).samples;
  const double forever = std::numeric_limits<double>::infinity();
  for (const double within : {0.0, 20e-6, forever}) {
    Step step = step_with(19);
    step.samples_within = within;
    std::vector<SampleResult> samples;
    int times = 0;
    std::promise<void> ended;
    device->run(
        plan, step,
        [&](std::exception_ptr failure, StepResult result) {
          CHECK(failure == nullptr && result.samples.size() >= 2);
          samples.insert(samples.end(), result.samples.begin(), result.samples.end());
          ended.set_value();
        },
        [&](std::vector<SampleResult> early, double waited) {
          CHECK(!early.empty() && early.size() % 2 == 0 && waited >= 0);
          samples.insert(samples.end(), early.begin(), early.end());
          ++times;
        });
    ended.get_future().get();
    CHECK(samples.size() == expected.size());
    for (size_t i = 0; i < samples.size(); ++i) CHECK(samples[i].token == expected[i].token);
    if (within == 0) CHECK(times == 19);
    if (within == forever) CHECK(times == 0);
  }
}

TEST(steps_that_follow_end_when_they_are_asked_to) {
  const auto device = open(2);
  const auto plan = device->compile(make_spec(*device, {}));
  Hold hold(*device);
  std::promise<StepResult> finished;
  const auto job = device->run(plan, step_with(19), [&](std::exception_ptr failure, StepResult result) {
    CHECK(failure == nullptr);
    finished.set_value(std::move(result));
  });
  job->finish();
  hold.release();
  CHECK(finished.get_future().get().samples.size() == 2);

  // One that runs: at the latest when it has ended.
  for (int i = 0; i < 20; ++i) {
    std::promise<size_t> steps;
    const auto running = device->run(plan, step_with(19), [&](std::exception_ptr, StepResult result) {
      steps.set_value(result.samples.size());
    });
    for (int spin = 0; spin < i * 2000; ++spin) std::atomic_signal_fence(std::memory_order_seq_cst);
    running->finish();
    const size_t samples = steps.get_future().get();
    CHECK(samples % 2 == 0 && samples >= 2 && samples <= 40);
  }
}

TEST(a_norm_that_two_operations_read_is_there_for_both) {
  const auto device = open(2);
  const MiniModel model;
  PlanSpec spec = make_spec(*device, model);
  const auto last_norm = std::find_if(spec.ops.rbegin(), spec.ops.rend(),
                                      [](const LabeledOp& op) { return op.label == "blk.1.ffn_norm"; });
  const BufferId hidden = std::get<RmsNormOp>(last_norm->op).in,
                 normed = std::get<RmsNormOp>(last_norm->op).out;
  Random random(9);
  const auto matrix = random_q1(*device, random, "beside", model.hidden, model.hidden);
  spec.ops.insert(last_norm.base() + 1, {LinearOp{normed, matrix, hidden, true, {}}, "beside"});
  const auto plan = device->compile(spec);
  // The same row among few, whose norms operations take on the way, and among many.
  const auto tokens = random_tokens(20, 3);
  Sequence alone{tokens, {0, 1}, {}}, whole{tokens, {2, 3}, {}};
  for (int i = 0; i < 20; ++i) advance(*device, plan, {&alone}, {1});
  advance(*device, plan, {&whole}, {20});
  CHECK(alone.logits == whole.logits);
}

TEST(what_is_not_finite_is_named) {
  const auto device = open(2);
  MiniModel model;
  model.embedding_scale = 1e30f;
  PlanSpec spec = make_spec(*device, model);
  Step step;
  step.tokens = {5, 6, 7};
  step.sequences = {{3, 10, {0}}};
  CHECK(contains(message_of(ErrorCode::kNonFinite, [&] { run(*device, device->compile(spec), step); }),
                 "activations of row 0 (sequence 0, position 7) are not finite at blk.0.attn_norm"));

  // Keys of 1e6 fit pages of all types but float16.
  step.sequences = {{3, 3, {0}}};
  for (const KvType type : {KvType::kF16, KvType::kF32, KvType::kQ8}) {
    model.embedding_scale = 1;
    model.kv_type = type;
    spec = make_spec(*device, model);
    for (LabeledOp& op : spec.ops) {
      if (auto* norm = std::get_if<QkNormRopeOp>(&op.op)) {
        norm->k_norm = std::make_shared<const Vector>("k_norm", std::vector<float>(64, 1e6f));
      }
    }
    const auto run_it = [&] { run(*device, device->compile(spec), step); };
    if (type == KvType::kF16) {
      CHECK(contains(message_of(ErrorCode::kNonFinite, run_it), "float16"));
    } else {
      CHECK(message_of(ErrorCode::kNonFinite, run_it) == "no error");
    }
  }
}

TEST(a_device_goes_on_after_an_error) {
  const auto device = open(2);
  const auto plan = device->compile(make_spec(*device, {}));
  Step step;
  step.tokens = {5};
  step.sequences = {{1, 1, {0}}};
  step.outputs = {0};
  step.samples.resize(1);
  for (int32_t token = 0; token < 300; ++token) step.samples[0].bias.emplace_back(token, -INFINITY);
  CHECK(message_of(ErrorCode::kInvalidArgument, [&] { run(*device, plan, step); }) != "no error");
  step.samples[0].bias.clear();
  CHECK(run(*device, plan, step).samples.size() == 1);
}

TEST(jobs_are_cancelled_in_the_queue_and_between_operations) {
  const auto device = open(2);
  const auto plan = device->compile(make_spec(*device, {}));
  Step step;
  step.tokens = random_tokens(64, 7);
  step.sequences = {{64, 64, {0, 1, 2, 3}}};
  std::atomic<int> cancelled{0}, ended{0}, order{0};
  std::atomic<bool> in_order{true};
  std::vector<std::shared_ptr<Job>> jobs;
  Hold hold(*device);
  for (int i = 0; i < 40; ++i) {
    jobs.push_back(device->run(plan, step, [&, i](std::exception_ptr failure, StepResult) {
      if (order++ != i) in_order = false;
      cancelled += contains(message_of(ErrorCode::kCancelled,
                                       [&] {
                                         if (failure) std::rethrow_exception(failure);
                                       }),
                            i % 2 == 1 ? "cancelled" : "no error");
      ++ended;
      ended.notify_one();
    }));
    if (i % 2 == 1) jobs.back()->cancel();
  }
  hold.release();
  for (int seen; (seen = ended) < 40;) ended.wait(seen);
  CHECK(cancelled == 40 && in_order);

  // A step that runs: with luck within its operations, at the latest when it has ended.
  for (int i = 0; i < 20; ++i) {
    std::promise<bool> done;
    const auto job = device->run(plan, step, [&](std::exception_ptr, StepResult) { done.set_value(true); });
    for (int spin = 0; spin < i * 2000; ++spin) std::atomic_signal_fence(std::memory_order_seq_cst);
    job->cancel();
    CHECK(done.get_future().get());
  }
}

TEST(a_step_knows_how_long_it_waited_for_others) {
  const auto device = open(1);
  const auto plan = device->compile(make_spec(*device, {}));
  Step step;
  step.tokens = {1};
  step.sequences = {{1, 1, {0}}};
  Hold hold(*device);
  std::promise<double> held;
  device->run(plan, step, [&](std::exception_ptr, StepResult result) { held.set_value(result.waited); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  hold.release();
  const double waited = held.get_future().get();
  CHECK(waited >= 0.02 && waited < 60);
  CHECK(run(*device, plan, step).waited < waited);
}

TEST(the_end_of_a_device_cancels_what_is_queued) {
  std::atomic<int> ended{0}, cancelled{0};
  {
    const auto device = open(2);
    const auto plan = device->compile(make_spec(*device, {}));
    Step step;
    step.tokens = random_tokens(64, 7);
    step.sequences = {{64, 64, {0, 1, 2, 3}}};
    for (int i = 0; i < 30; ++i) {
      device->run(plan, step, [&](std::exception_ptr failure, StepResult) {
        ++ended;
        cancelled += failure != nullptr;
      });
    }
  }
  CHECK(ended == 30 && cancelled > 0);
}

TEST(a_plan_runs_on_its_own_device_only) {
  auto first = open(1);
  const auto plan = first->compile(make_spec(*first, {}));
  Step step;
  step.tokens = {1};
  step.sequences = {{1, 1, {0}}};
  first.reset();
  for (int i = 0; i < 4; ++i) {
    const auto other = open(3);
    CHECK(contains(message_of(ErrorCode::kInvalidArgument, [&] { run(*other, plan, step); }),
                   "another device"));
  }
}

TEST(options_are_checked) {
  CHECK(contains(message_of(ErrorCode::kUnsupported, [] { open(1, "sse9"); }),
                 "it has " + Device::tiers().front()));
  CHECK(contains(message_of(ErrorCode::kInvalidArgument, [] { open(-1); }), "got -1"));
  CHECK(contains(message_of(ErrorCode::kInvalidArgument, [] { open(1000); }), "got 1000"));
  CHECK(open(0)->threads() >= 1);
  CHECK(Device::tiers().back() == "portable");
}

TEST(a_load_reports_its_tensor) {
  const auto device = open(2);
  auto data = std::make_shared<std::vector<float>>(32, 1.0f);
  (*data)[20] = NAN;
  const std::weak_ptr<void> alive = data;
  const auto source =
      MatrixSource{"blk.0.bad", DataType::kF32, 2, reinterpret_cast<const uint8_t*>(data->data())};
  CHECK(contains(message_of(ErrorCode::kNonFinite, [&] { load(*device, {source}, 16, std::move(data)); }),
                 "blk.0.bad"));
}

TEST_MAIN()
