// Adapters of one linear operation: what they compute, and what cannot be loaded.
#include "niwaki/adapter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "adapters.h"
#include "check.h"
#include "cpu/linear_kernels.h"
#include "cpu/tier.h"
#include "errors.h"
#include "tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

std::shared_ptr<Device> open(int threads = 2, const std::string& tier = "") {
  return Device::open({threads, tier});
}

std::vector<float> row_norms(Device& device, const std::shared_ptr<AdapterSlots>& slots,
                             const AdapterTarget& target) {
  std::promise<std::vector<float>> ended;
  device.adapter_row_norms(slots, target, nullptr, [&](std::exception_ptr failure, auto norms) {
    failure ? ended.set_exception(failure) : ended.set_value(std::move(norms));
  });
  return ended.get_future().get();
}

/// y = W x of every token's embedding x, as logits: one linear operation of several tensors.
struct OneLinear {
  int32_t rows;  // of all tensors, the vocabulary
  int64_t columns;
  std::vector<Tensor> tensors;
  Tensor table;
  bool per_output;

  OneLinear(DataType type, std::vector<int64_t> part_rows, int64_t columns, bool per_output = false)
      : rows(static_cast<int32_t>(std::accumulate(part_rows.begin(), part_rows.end(), int64_t{0}))),
        columns(columns),
        table(random_tensor(DataType::kF32, rows, columns, 99, "table")),
        per_output(per_output) {
    for (float& x : std::span(reinterpret_cast<float*>(table.bytes.data()), table.bytes.size() / 4)) x *= 30;
    for (size_t i = 0; i < part_rows.size(); ++i)
      tensors.push_back(random_tensor(type, part_rows[i], columns, 7 + i, "w" + std::to_string(i)));
  }

  std::shared_ptr<Plan> compile(Device& device, Activation activation = Activation::kNone) const {
    std::vector<MatrixSource> sources;
    for (const Tensor& tensor : tensors) sources.push_back(tensor.source());
    const auto matrix = test::load(device, sources, columns, nullptr);
    const auto embedding = test::load(device, {table.source()}, columns, nullptr);
    const int32_t width = activation == Activation::kSwiglu ? rows / 2 : rows;
    PlanSpec spec{64, 64, width, 16, {}, {}, 2};
    spec.buffers = {{columns, false}, {per_output ? columns : width, per_output}, {width, true}};
    spec.ops.push_back({EmbedOp{embedding, 0}, "embed"});
    if (per_output) {
      spec.ops.push_back({SelectOutputsOp{0, 1}, "select"});
      spec.ops.push_back({LinearOp{1, matrix, 2, false, activation}, "linear"});
    } else {
      spec.ops.push_back({LinearOp{0, matrix, 1, false, activation}, "linear"});
      spec.ops.push_back({SelectOutputsOp{1, 2}, "select"});
    }
    return device.compile(spec);
  }

  /// What a mix makes of W x, in double.
  std::vector<double> reference(int32_t token, const std::vector<std::pair<const Pair*, double>>& mix) const {
    std::vector<double> y;
    for (const Tensor& tensor : tensors) {
      for (int64_t r = 0; r < tensor.rows; ++r) {
        double base = 0;
        for (int64_t c = 0; c < columns; ++c)
          base += static_cast<double>(tensor.weight(r, c)) * static_cast<double>(table.weight(token, c));
        double sum = base;
        for (const auto& [pair, weight] : mix) {
          if (pair->target.tensor != tensor.name) continue;
          double change = 0;
          for (int k = 0; k < pair->target.rank; ++k) {
            double t = 0;
            for (int64_t c = 0; c < columns; ++c)
              t += static_cast<double>(pair->a_at(k, c)) * static_cast<double>(table.weight(token, c));
            change += static_cast<double>(pair->b_at(r, k)) * t;
          }
          const double f = pair->target.row_scale.empty()
                               ? 1
                               : static_cast<double>(pair->target.row_scale[static_cast<size_t>(r)]);
          sum += weight * ((f - 1) * base + f * static_cast<double>(pair->target.scale) * change);
        }
        y.push_back(sum);
      }
    }
    return y;
  }
};

/// A step of one row for each mix, of tokens 0, 1, 2 ...
Step step_of(const std::shared_ptr<AdapterSlots>& slots, const std::vector<std::vector<AdapterUse>>& mixes) {
  Step step;
  step.adapter_slots = slots;
  step.want_logits = true;
  for (size_t i = 0; i < mixes.size(); ++i) {
    step.tokens.push_back(static_cast<int32_t>(i));
    step.sequences.push_back({1, 1, {}, mixes[i]});
    step.outputs.push_back(static_cast<int32_t>(i));
  }
  return step;
}

double relative_error(std::span<const float> y, const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(y[i]) - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST(agrees_with_double) {
  for (const int64_t columns : {16, 75, 256}) {
    for (const bool per_output : {false, true}) {
      const auto device = open();
      const OneLinear linear(DataType::kF32, {70, 33, 128}, columns, per_output);
      const auto plan = linear.compile(*device);
      for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
        const auto slots = make_slots(*device, plan, {4, 20, type, {"w0", "w1", "w2"}});
        for (const DataType from : {DataType::kF16, DataType::kBF16, DataType::kF32}) {
          const std::vector<std::vector<Pair>> adapters = {
              {{"w0", 70, columns, 1, from, 10},
               {"w1", 33, columns, 20, from, 20},
               {"w2", 128, columns, 7, from, 30}},
              {{"w2", 128, columns, 16, from, 40, true}},
              {{"w1", 33, columns, 3, from, 50, true}, {"w0", 70, columns, 4, from, 60}}};
          for (size_t i = 0; i < adapters.size(); ++i) {
            std::vector<AdapterTarget> targets;
            for (const Pair& pair : adapters[i]) targets.push_back(pair.target);
            load(*device, slots, static_cast<int32_t>(i + 1), targets);
          }
          const std::vector<std::vector<AdapterUse>> mixes = {
              {{1, 1}}, {}, {{2, 1}}, {{3, -0.5f}}, {{2, 0.5f}, {3, 0.25f}, {1, 2}}, {{1, 1}}};
          const StepResult result = run(*device, plan, step_of(slots, mixes));
          for (size_t i = 0; i < mixes.size(); ++i) {
            std::vector<std::pair<const Pair*, double>> mix;
            for (const AdapterUse& use : mixes[i]) {
              for (const Pair& pair : adapters[static_cast<size_t>(use.slot - 1)])
                mix.emplace_back(&pair, use.weight);
            }
            const auto expected = linear.reference(static_cast<int32_t>(i), mix);
            const auto row = std::span(result.logits).subspan(i * expected.size(), expected.size());
            const double bound = mix.empty() || (type == AdapterType::kF16 && from == DataType::kF16) ? 1e-6
                                 : type == AdapterType::kF16                                          ? 1e-3
                                                                                                      : 2e-2;
            CHECK(relative_error(row, expected) < bound);
          }
        }
      }
    }
  }
}

TEST(comes_before_swiglu) {
  const auto device = open();
  const OneLinear linear(DataType::kF32, {40, 40}, 64);
  const auto plan = linear.compile(*device, Activation::kSwiglu);
  const auto slots = make_slots(*device, plan, {1, 8, AdapterType::kF16, {"w0", "w1"}});
  const Pair gate("w0", 40, 64, 8, DataType::kF16, 1), up("w1", 40, 64, 4, DataType::kF16, 5);
  load(*device, slots, 0, {gate.target, up.target});
  const StepResult result = run(*device, plan, step_of(slots, {{{0, 1}}}));
  const auto whole = linear.reference(0, {{&gate, 1.0}, {&up, 1.0}});
  std::vector<double> expected;
  for (size_t i = 0; i < 40; ++i) expected.push_back(whole[i] / (1 + std::exp(-whole[i])) * whole[i + 40]);
  CHECK(relative_error(result.logits, expected) < 1e-6);
}

TEST(gate_and_up_have_the_bits_that_they_have_alone) {
  const struct {
    DataType type;
    int64_t rows;
  } cases[] = {{DataType::kQ1_0, 77}, {DataType::kQ1_0, 1280}, {DataType::kQ2_0, 600}, {DataType::kF16, 77}};
  for (const auto& [type, rows] : cases) {
    const Pair pairs[] = {{"w0", rows, 128, 8, DataType::kF16, 1},
                          {"w1", rows, 128, 5, DataType::kF16, 3},
                          {"w0", rows, 128, 2, DataType::kF16, 5, true},
                          {"w1", rows, 128, 8, DataType::kF16, 7, true}};
    const OneLinear linear(type, {rows, rows}, 128);
    OneLinear gate(type, {rows}, 128), up(type, {rows}, 128);
    up.tensors[0] = linear.tensors[1];
    for (const std::string& tier : Device::tiers()) {
      for (const int threads : {1, 3}) {
        const auto device = open(threads, tier);
        const auto run_rows = [&](const OneLinear& of, int count, Activation activation) {
          const auto plan = of.compile(*device, activation);
          std::vector<std::string> names;
          for (const Tensor& tensor : of.tensors) names.push_back(tensor.name);
          const auto slots = make_slots(*device, plan, {2, 8, AdapterType::kF16, names});
          std::vector<AdapterTarget> first, second;
          for (const Pair& pair : pairs) {
            if (std::find(names.begin(), names.end(), pair.target.tensor) == names.end()) continue;
            (pair.target.row_scale.empty() ? first : second).push_back(pair.target);
          }
          load(*device, slots, 0, first);
          load(*device, slots, 1, second);
          const std::vector<AdapterUse> mixes[] = {{{0, 1}}, {{1, 0.5f}, {0, 2}}, {}};
          std::vector<std::vector<AdapterUse>> of_rows;
          for (int i = 0; i < count; ++i) of_rows.push_back(mixes[i % 3]);
          return run(*device, plan, step_of(slots, of_rows)).logits;
        };
        for (const int count : {1, 2, 3, 4, 40}) {
          const auto g = run_rows(gate, count, Activation::kNone), u = run_rows(up, count, Activation::kNone);
          const auto stacked = run_rows(linear, count, Activation::kNone);
          const auto y = run_rows(linear, count, Activation::kSwiglu);
          for (int64_t t = 0; t < count; ++t) {
            const auto row_of = [&](const std::vector<float>& of) {
              std::vector<float> row(of.begin() + t * rows, of.begin() + (t + 1) * rows);
              row.resize(static_cast<size_t>(rows + 15) / 16 * 16);
              return row;
            };
            const auto g_row = row_of(g), u_row = row_of(u);
            auto expected = g_row;
            choose_tier(tier).linear.swiglu(g_row.data(), u_row.data(), (rows + 15) / 16 * 16,
                                            expected.data());
            const auto n = static_cast<size_t>(rows) * sizeof(float);
            CHECK(std::memcmp(&y[static_cast<size_t>(t * rows)], expected.data(), n) == 0);
            CHECK(std::memcmp(&stacked[static_cast<size_t>(2 * t * rows)], g_row.data(), n) == 0);
            CHECK(std::memcmp(&stacked[static_cast<size_t>((2 * t + 1) * rows)], u_row.data(), n) == 0);
          }
        }
      }
    }
  }
}

TEST(what_cannot_be_loaded_leaves_the_slot_as_it_was) {
  const auto device = open();
  const OneLinear linear(DataType::kF32, {70, 33}, 64);
  const auto plan = linear.compile(*device);
  for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
    const auto slots = make_slots(*device, plan, {2, 8, type, {"w0", "w1"}});
    const Pair good("w0", 70, 64, 8, DataType::kF32, 1);
    load(*device, slots, 1, {good.target});
    const auto before = run(*device, plan, step_of(slots, {{{1, 1}}})).logits;
    const auto fails = [&](ErrorCode code, const std::vector<AdapterTarget>& adapter,
                           const std::string& part) {
      CHECK(contains(message_of(code, [&] { load(*device, slots, 1, adapter); }), part));
      CHECK(run(*device, plan, step_of(slots, {{{1, 1}}})).logits == before);
    };
    const auto changed = [&](auto&& change) {
      AdapterTarget target = good.target;
      change(target);
      return std::vector<AdapterTarget>{target};
    };
    constexpr auto kBad = ErrorCode::kInvalidArgument;
    fails(kBad, changed([](auto& t) { t.tensor = "w2"; }), "no target called w2");
    fails(kBad, changed([](auto& t) { t.rank = 0; }), "w0: rank must be 1 to 8, got 0");
    fails(kBad, changed([](auto& t) { t.rank = 9; }), "w0: rank must be 1 to 8, got 9");
    fails(kBad, changed([](auto& t) { t.rank = 4; }), "w0: A must be 4 x 64 of F32, 1024 bytes, got 2048");
    fails(kBad, changed([](auto& t) { t.tensor = "w1"; }),
          "w1: B must be 33 x 8 of F32, 1056 bytes, got 2240");
    fails(kBad, changed([](auto& t) { t.a.type = DataType::kQ8_0; }),
          "w0: A must be F32, F16 or BF16, got Q8_0");
    fails(kBad, changed([](auto& t) { t.scale = NAN; }), "w0: scale must be finite");
    fails(kBad, changed([](auto& t) { t.row_scale = {1}; }), "w0: row_scale must have 70 values, got 1");
    fails(kBad, {good.target, good.target}, "w0 is there twice");
    fails(ErrorCode::kNonFinite, changed([](auto& t) {
            t.row_scale.assign(70, 1);
            t.row_scale[69] = INFINITY;
          }),
          "w0: row_scale 69 is NaN or infinite");
    for (const bool in_b : {false, true}) {
      for (const float bad : {NAN, INFINITY, -INFINITY, -70000.0f}) {
        Pair pair("w0", 70, 64, 8, DataType::kF32, 1);
        Tensor& tensor = in_b ? *pair.b : *pair.a;
        std::memcpy(tensor.bytes.data() + tensor.bytes.size() - 4, &bad, 4);
        if (std::isfinite(bad) && type == AdapterType::kI8) continue;
        fails(ErrorCode::kNonFinite, {pair.target},
              std::string("w0: ") + (in_b ? "B" : "A") +
                  (std::isfinite(bad) ? " has a value of magnitude 70000"
                                      : " has a value that is NaN or infinite"));
      }
    }
    CHECK(contains(message_of(kBad, [&] { load(*device, slots, 2, {}); }), "slot must be 0 to 1, got 2"));
  }
}

TEST(integers_hold_what_is_next_to_nothing) {
  const auto device = open();
  const OneLinear linear(DataType::kF32, {70}, 64);
  const auto plan = linear.compile(*device);
  const auto slots = make_slots(*device, plan, {1, 8, AdapterType::kI8, {"w0"}});
  for (const float tiny : {0.0f, 1e-44f, 1e-30f}) {
    Pair pair("w0", 70, 64, 8, DataType::kF32, 1);
    for (size_t i = 1; i < pair.a->bytes.size(); i += 4) std::memcpy(pair.a->bytes.data() + i, &tiny, 4);
    load(*device, slots, 0, {pair.target});
    const auto y = run(*device, plan, step_of(slots, {{{0, 1}}})).logits;
    CHECK(relative_error(y, linear.reference(0, {})) < 1e-6);
  }
}

TEST(steps_and_slots_fit_their_plan) {
  const auto device = open();
  const OneLinear linear(DataType::kF32, {70, 33}, 64);
  const auto plan = linear.compile(*device), other = linear.compile(*device);
  constexpr auto kBad = ErrorCode::kInvalidArgument;
  const auto making = [&](AdapterSlotsSpec spec) {
    return message_of(kBad, [&] { make_slots(*device, plan, spec); });
  };
  CHECK(contains(making({0, 8, AdapterType::kF16, {"w0"}}), "slots must be 1 to 4096, got 0"));
  CHECK(contains(making({1, 0, AdapterType::kF16, {"w0"}}), "max_rank must be 1 to 4096, got 0"));
  CHECK(contains(making({1, 8, AdapterType::kF16, {}}), "there must be a target"));
  CHECK(contains(making({1, 8, AdapterType::kF16, {"w0", "w0"}}), "w0 is named twice"));
  CHECK(contains(making({1, 8, AdapterType::kF16, {"table"}}), "no tensor called table"));
  const auto slots = make_slots(*device, plan, {2, 8, AdapterType::kF16, {"w0"}});
  const auto running = [&](const std::shared_ptr<Plan>& on, const Step& step) {
    return message_of(kBad, [&] { run(*device, on, step); });
  };
  CHECK(contains(running(plan, step_of(slots, {{{2, 1}}})), "an adapter's slot must be 0 to 1, got 2"));
  CHECK(contains(running(plan, step_of(slots, {{{-1, 1}}})), "an adapter's slot must be 0 to 1, got -1"));
  CHECK(contains(running(plan, step_of(slots, {{{0, NAN}}})), "an adapter's weight must be finite, got nan"));
  CHECK(contains(running(plan, step_of(nullptr, {{{0, 1}}})), "has adapters, the step no slots"));
  CHECK(contains(running(plan, step_of(slots, {{{1, 1}}})), "slot 1, which is empty"));
  CHECK(contains(running(plan, step_of(slots, {std::vector<AdapterUse>(17, {0, 1})})), "at most 16, got 17"));
  CHECK(contains(running(other, step_of(slots, {{}})), "made for another plan"));
  const auto elsewhere = open(1);
  CHECK(contains(message_of(kBad, [&] { load(*elsewhere, slots, 0, {}); }), "on another device"));
}

TEST(row_norms_agree_with_double) {
  for (const DataType type : kAllTypes) {
    std::vector<float> expected;
    for (const std::string& tier : Device::tiers()) {
      const auto device = open(2, tier);
      const int64_t columns = info(type).block == 1 ? 75 : 256;
      const OneLinear linear(type, {37, 70}, columns);
      const auto plan = linear.compile(*device);
      const auto slots = make_slots(*device, plan, {1, 20, AdapterType::kI8, {"w1"}});
      for (const DataType from : {DataType::kF32, DataType::kF16, DataType::kBF16}) {
        const Pair pair("w1", 70, columns, 18, from, 3);
        const auto norms = row_norms(*device, slots, pair.target);
        std::vector<double> exact;
        for (int64_t r = 0; r < 70; ++r) {
          double squares = 0;
          for (int64_t c = 0; c < columns; ++c) {
            double w = static_cast<double>(linear.tensors[1].weight(r, c));
            for (int k = 0; k < 18; ++k) {
              w += static_cast<double>(pair.target.scale) * static_cast<double>(pair.b_at(r, k)) *
                   static_cast<double>(pair.a_at(k, c));
            }
            squares += w * w;
          }
          exact.push_back(std::sqrt(squares));
        }
        CHECK(norms.size() == 70 && relative_error(norms, exact) < 1e-6);
        if (from != DataType::kBF16) continue;
        if (expected.empty()) expected = norms;
        CHECK(norms == expected);
      }
      Pair spoiled("w1", 70, columns, 18, DataType::kF32, 3);
      const float bad = NAN;
      std::memcpy(spoiled.b->bytes.data() + 1 + 18 * 4 * 5, &bad, 4);
      CHECK(contains(message_of(ErrorCode::kNonFinite, [&] { row_norms(*device, slots, spoiled.target); }),
                     "w1: the norm of row 5"));
    }
  }
}

TEST_MAIN()
