#include "niwaki/training.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/tier.h"
#include "cpu/training/training_plan.h"
#include "niwaki/error.h"
#include "tests/check.h"
#include "tests/training_model.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

const std::atomic<bool> kNotCancelled{false};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TrainingBatch random_batch(uint64_t seed, std::vector<int32_t> sequences) {
  Random random(seed);
  TrainingBatch batch{{}, std::move(sequences), {}, {}, {}};
  for (const int32_t count : batch.sequences) {
    for (int32_t i = 0; i < count; ++i) {
      const auto row = static_cast<int32_t>(batch.tokens.size());
      batch.tokens.push_back(static_cast<int32_t>(random.below(TrainingModel::kVocabulary)));
      if (random.below(3) == 0 && row > 0) continue;
      batch.outputs.push_back(row);
      batch.targets.push_back(static_cast<int32_t>(random.below(TrainingModel::kVocabulary)));
      batch.weights.push_back(0.02f + 0.05f * static_cast<float>(random.uniform()));
    }
  }
  return batch;
}

std::shared_ptr<TrainingPlan> make_plan(ThreadPool& pool, const Tier& tier, const TrainingModel& model,
                                        int32_t max_rows, std::vector<float>* parameters = nullptr) {
  auto plan = std::make_shared<CpuTrainingPlan>(tier, pool.threads(), model.spec(pool, tier, max_rows));
  const size_t count = plan->read(TrainingState::kParameters).size();
  const std::vector<float> values = Random(5).normals(count, 0.05f);
  plan->write(TrainingState::kParameters, values);
  if (parameters != nullptr) *parameters = values;
  return plan;
}

double accumulate(ThreadPool& pool, TrainingPlan& plan, const TrainingBatch& batch) {
  double loss = 0;
  plan.check(batch);
  run_job(pool, [&] { loss = plan.accumulate(pool, batch, kNotCancelled); });
  return loss;
}
double update(ThreadPool& pool, TrainingPlan& plan, const AdamW& options) {
  double norm = 0;
  run_job(pool, [&] { norm = plan.update(pool, options); });
  return norm;
}

template <class F>
ErrorCode code_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code;
  }
  return ErrorCode::kIo;  // nothing here throws it
}

}  // namespace

TEST(gradients_match_finite_differences_in_double) {
  ThreadPool pool(2);
  for (const DataType type : {DataType::kF32, DataType::kQ1_0, DataType::kQ2_0}) {
    const TrainingModel model(type);
    std::vector<float> start;
    const auto plan = make_plan(pool, *available_tiers().front(), model, 40, &start);
    const TrainingBatch batch = random_batch(3, {7, 1, 5});
    const double loss = accumulate(pool, *plan, batch);
    const std::vector<float> gradients = plan->read(TrainingState::kGradients);
    std::vector<double> p(start.begin(), start.end());
    CHECK(std::fabs(loss - model.loss(batch, p)) <= 1e-5 * std::fabs(loss));

    // Random directions within A and within B of every adapter.
    Random random(7);
    size_t at = 0;
    for (const auto& adapter : plan->adapters()) {
      for (const int64_t count : {adapter.rank * adapter.inputs, adapter.rank * adapter.outputs}) {
        const auto n = static_cast<size_t>(count);
        const std::vector<float> direction = random.normals(n);
        const double h = 1e-5;
        double expected = 0, size = 0;
        const auto moved = [&](double step) {
          std::vector<double> q = p;
          for (size_t i = 0; i < n; ++i) q[at + i] += step * static_cast<double>(direction[i]);
          return model.loss(batch, q);
        };
        for (size_t i = 0; i < n; ++i) {
          expected += static_cast<double>(gradients[at + i]) * static_cast<double>(direction[i]);
          size += std::pow(static_cast<double>(gradients[at + i]), 2);
        }
        const double difference = (moved(h) - moved(-h)) / (2 * h);
        CHECK(size > 0);
        CHECK(std::fabs(difference - expected) <= 1e-4 * std::sqrt(size) * 3);
        at += n;
      }
    }
    CHECK(at == gradients.size());
  }
}

TEST(every_tier_and_number_of_threads_gives_the_same_bits) {
  for (const DataType type : kAllTypes) {
    const TrainingModel model(type, 2);
    // One sequence is longer than attention's tile of queries; once will do, as it does not see the type.
    const int32_t longest = type == DataType::kF32 ? 70 : 19;
    const std::vector<TrainingBatch> batches = {random_batch(1, {11, 5}), random_batch(2, {longest, 3})};
    std::vector<float> first;
    double first_loss = 0;
    for (const Tier* tier : available_tiers()) {
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        const auto plan = make_plan(pool, *tier, model, 90);
        double loss = 0;
        for (int64_t step = 1; step <= 2; ++step) {
          for (const auto& batch : batches) loss += accumulate(pool, *plan, batch);
          loss += update(pool, *plan,
                         {.step = step, .learning_rate = 1e-2, .weight_decay = 0.1, .max_gradient_norm = 1});
        }
        const std::vector<float> parameters = plan->read(TrainingState::kParameters);
        if (first.empty()) first = parameters, first_loss = loss;
        CHECK(same_bits(parameters, first));
        CHECK(loss == first_loss);
      }
    }
  }
}

TEST(gradients_add_up_and_are_cleared) {
  ThreadPool pool(2);
  const TrainingModel model(DataType::kQ1_0);
  const auto plan = make_plan(pool, *available_tiers().front(), model, 40);
  const TrainingBatch one = random_batch(1, {20}), two = random_batch(2, {7, 9});
  const auto gradients_of = [&](std::initializer_list<const TrainingBatch*> batches) {
    for (const TrainingBatch* batch : batches) accumulate(pool, *plan, *batch);
    std::vector<float> gradients = plan->read(TrainingState::kGradients);
    plan->write(TrainingState::kGradients, std::vector<float>(gradients.size()));
    return gradients;
  };
  const auto a = gradients_of({&one}), b = gradients_of({&two}), both = gradients_of({&one, &two});
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error +=
        std::pow(static_cast<double>(both[i]) - static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(both[i]), 2);
  }
  CHECK(size > 0 && error <= 1e-12 * size);

  accumulate(pool, *plan, one);
  const std::atomic<bool> cancelled{true};
  CHECK(code_of([&] { run_job(pool, [&] { plan->accumulate(pool, one, cancelled); }); }) ==
        ErrorCode::kCancelled);
  for (const float g : plan->read(TrainingState::kGradients)) CHECK(g == 0);
  CHECK(same_bits(gradients_of({&one}), a));
}

TEST(adamw_matches_double) {
  ThreadPool pool(3);
  const TrainingModel model(DataType::kQ1_0);
  std::vector<float> start;
  const auto plan = make_plan(pool, *available_tiers().front(), model, 40, &start);
  std::vector<double> p(start.begin(), start.end()), m(p.size()), v(p.size());
  Random random(9);
  for (int64_t step = 1; step <= 5; ++step) {
    const float size = step % 2 == 0 ? 1e-3f : 1e-6f;  // the second kind is not clipped
    const std::vector<float> g = random.normals(p.size(), size);
    double norm = 0;
    for (const float x : g) norm += std::pow(static_cast<double>(x), 2);
    norm = std::sqrt(norm);
    const AdamW options{step, 1e-2, 0.9, 0.99, 1e-8, 0.1, 0.05};
    plan->write(TrainingState::kGradients, g);
    CHECK(std::fabs(update(pool, *plan, options) - norm) <= 1e-9 * norm);
    const double clip = std::min(1.0, options.max_gradient_norm / norm);
    for (size_t i = 0; i < p.size(); ++i) {
      const double gradient = clip * static_cast<double>(g[i]);
      m[i] = 0.9 * m[i] + 0.1 * gradient;
      v[i] = 0.99 * v[i] + 0.01 * gradient * gradient;
      const double mean = m[i] / (1 - std::pow(0.9, step)), square = v[i] / (1 - std::pow(0.99, step));
      p[i] -= 1e-2 * 0.1 * p[i] + 1e-2 * mean / (std::sqrt(square) + 1e-8);
    }
  }
  const std::vector<float> got = plan->read(TrainingState::kParameters);
  for (size_t i = 0; i < p.size(); ++i) CHECK(std::fabs(static_cast<double>(got[i]) - p[i]) <= 1e-5);
  for (const float g : plan->read(TrainingState::kGradients)) CHECK(g == 0);
}

TEST(what_is_not_finite_is_told_and_leaves_the_parameters) {
  ThreadPool pool(2);
  const TrainingModel model(DataType::kQ1_0);
  const auto plan = make_plan(pool, *available_tiers().front(), model, 40);
  std::vector<float> parameters = plan->read(TrainingState::kParameters), gradients(parameters.size());
  gradients[17] = NAN;
  plan->write(TrainingState::kGradients, gradients);
  CHECK(code_of([&] { update(pool, *plan, {.step = 1, .learning_rate = 1e-3}); }) == ErrorCode::kNonFinite);
  CHECK(same_bits(plan->read(TrainingState::kParameters), parameters));
  parameters[3] = NAN;
  plan->write(TrainingState::kParameters, parameters);
  CHECK(code_of([&] { accumulate(pool, *plan, random_batch(1, {8})); }) == ErrorCode::kNonFinite);
}

TEST(batches_that_do_not_fit_are_refused) {
  ThreadPool pool(1);
  const auto plan = make_plan(pool, *available_tiers().front(), TrainingModel(DataType::kQ1_0), 20);
  const TrainingBatch good = random_batch(1, {8, 5});
  const auto refused = [&](auto change) {
    TrainingBatch bad = good;
    change(bad);
    CHECK(code_of([&] { plan->check(bad); }) == ErrorCode::kInvalidArgument);
  };
  plan->check(good);
  refused([](TrainingBatch& b) { b.tokens[2] = TrainingModel::kVocabulary; });
  refused([](TrainingBatch& b) { b.tokens[2] = -1; });
  refused([](TrainingBatch& b) { b.sequences[0] = 9; });
  refused([](TrainingBatch& b) { b.sequences = {13, 0}; });
  refused([](TrainingBatch& b) { b.outputs[1] = b.outputs[0]; });
  refused([](TrainingBatch& b) { b.outputs.back() = 13; });
  refused([](TrainingBatch& b) { b.targets[0] = -1; });
  refused([](TrainingBatch& b) { b.targets.pop_back(); });
  refused([](TrainingBatch& b) { b.weights[0] = INFINITY; });
  refused([](TrainingBatch& b) { b.outputs = {}, b.targets = {}, b.weights = {}; });
  refused([](TrainingBatch& b) {
    b.tokens.resize(21);
    b.sequences = {20, 1};
  });
}

TEST(plans_that_do_not_fit_are_refused) {
  ThreadPool pool(1);
  const TrainingModel model(DataType::kQ1_0);
  const auto refused = [&](auto change) {
    TrainingSpec spec = model.spec(pool, *available_tiers().front(), 20);
    change(spec);
    CHECK(code_of([&] { CpuTrainingPlan(*available_tiers().front(), 1, spec); }) ==
          ErrorCode::kInvalidArgument);
  };
  const auto linear = [](TrainingSpec& spec, size_t op) -> LoraLinearOp& {
    return std::get<LoraLinearOp>(spec.ops[op].op);
  };
  refused([](TrainingSpec& s) { s.max_rows = 0; });
  refused([](TrainingSpec& s) { s.max_outputs = 21; });
  refused([](TrainingSpec& s) { s.max_sequence = 0; });
  refused([](TrainingSpec& s) { s.vocabulary = 71; });
  refused([](TrainingSpec& s) { s.logits = 3; });
  refused([](TrainingSpec& s) { s.buffers[1].width = 112; });
  refused([](TrainingSpec& s) { s.ops.erase(s.ops.begin() + 1); });
  refused([&](TrainingSpec& s) { linear(s, 2).adapters[0].part = 3; });
  refused([&](TrainingSpec& s) { linear(s, 2).adapters[0].part = 1; });
  refused([&](TrainingSpec& s) { linear(s, 2).adapters[0].rank = 0; });
  refused([&](TrainingSpec& s) { linear(s, 5).residual = linear(s, 5).in; });
  refused([&](TrainingSpec& s) { linear(s, 5).residual = 99; });
  refused([](TrainingSpec& s) { s.rope.head_dim = 16; });
}

TEST_MAIN()
