// Steps of few rows, in which operations are done on the way by those beside them, against the same
// operations one after another.
#include <cmath>
#include <numeric>

#include "tests/check.h"
#include "tests/errors.h"
#include "tests/mini_model.h"
#include "tests/tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

std::shared_ptr<Device> open(int threads, const std::string& tier = "") {
  return Device::open({threads, tier});
}

/// The plan with an operation after each that changes nothing, so that none has a neighbor to be joined with.
PlanSpec spread(const PlanSpec& spec) {
  PlanSpec apart = spec;
  apart.ops = {spec.ops[0], spec.ops[1]};
  const LabeledOp between{spec.ops[1].op, "between"};
  CHECK(std::holds_alternative<RopeTableOp>(between.op));
  for (size_t i = 2; i < spec.ops.size(); ++i) {
    apart.ops.push_back(spec.ops[i]);
    apart.ops.push_back(between);
  }
  return apart;
}

template <class T>
T& op_named(PlanSpec& spec, const std::string& label) {
  for (LabeledOp& op : spec.ops) {
    if (op.label == label) return std::get<T>(op.op);
  }
  throw std::runtime_error("no operation " + label);
}

/// Down of Q2_0, of as many columns as the SwiGLU is now wide.
void narrow_ffn(Device& device, PlanSpec& spec, const MiniModel& model, int32_t width) {
  Random random(8);
  for (int32_t l = 0; l < model.layers; ++l) {
    const std::string name = "blk." + std::to_string(l);
    auto& gate_up = op_named<LinearOp>(spec, name + ".ffn_gate_up");
    auto& down = op_named<LinearOp>(spec, name + ".ffn_down");
    gate_up.matrix = random_q1(device, random, name + ".ffn_gate_up.", 2 * width, model.hidden, 2);
    const auto tensor =
        std::make_shared<Tensor>(random_tensor(DataType::kQ2_0, model.hidden, width, 80 + l, "down"));
    down.matrix = load(device, {tensor->source()}, width, tensor);
    spec.buffers[static_cast<size_t>(down.in)].width = width;
  }
}

/// The logits of all rows of three sequences over steps with so many rows of each.
std::vector<float> logits_of(Device& device, const PlanSpec& spec,
                             const std::vector<std::vector<int>>& steps) {
  const auto plan = device.compile(spec);
  std::vector<float> logits;
  std::vector<int> done(3);
  for (const std::vector<int>& rows : steps) {
    Step step;
    step.want_logits = true;
    for (size_t s = 0; s < rows.size(); ++s) {
      if (rows[s] == 0) continue;
      for (int i = 0; i < rows[s]; ++i) {
        step.tokens.push_back(static_cast<int32_t>((s * 97 + static_cast<size_t>(done[s]++) * 31) % 300));
      }
      const auto block = static_cast<int32_t>(s * 10);
      step.sequences.push_back(
          {rows[s], done[s], {block + 5, block, block + 7, block + 1, block + 2, block + 9}});
    }
    step.outputs.resize(step.tokens.size());
    std::iota(step.outputs.begin(), step.outputs.end(), 0);
    const StepResult result = run(device, plan, step);
    logits.insert(logits.end(), result.logits.begin(), result.logits.end());
  }
  return logits;
}

Step step_of(const std::vector<int32_t>& tokens, int32_t context_length = 1) {
  Step step;
  step.tokens = tokens;
  for (size_t s = 0; s < tokens.size(); ++s)
    step.sequences.push_back({1, s == 0 ? 1 : context_length, {static_cast<int32_t>(s)}});
  return step;
}

}  // namespace

TEST(few_rows_have_the_same_bits_as_by_one_operation_after_another) {
  struct Case {
    MiniModel model;
    int32_t narrow = 0;
  };
  std::vector<Case> cases(9);
  cases[1].model.kv_type = KvType::kF32;
  cases[2].model.kv_type = KvType::kQ8;
  cases[3].model.kv_heads = 4;   // a KV head's 64 columns are no group of activations
  cases[4].model.head_dim = 48;  // nor are 96
  cases[4].model.heads = 8;
  cases[4].model.kv_heads = 4;
  cases[5].model.ffn = 1280;     // of 20 blocks, shared out by fives in one thread
  cases[6].narrow = 320;         // the last group of activations is half of one
  cases[7].model.head_dim = 32;  // groups of four heads, so that 32 rows are a tile
  cases[7].model.heads = 8;
  cases[8].model.ffn = 2816;  // of 44 blocks, shared out by twelves in one thread, more than go at once
  // Alone, together, several rows of one, chunks that fit a tile and that do not.
  const std::vector<std::vector<int>> steps = {{20, 1, 0}, {1, 0, 0},  {1, 1, 1}, {3, 0, 0},  {2, 1, 0},
                                               {1, 2, 0},  {0, 1, 0},  {0, 0, 3}, {5, 20, 9}, {1, 0, 1},
                                               {50, 0, 1}, {0, 64, 0}, {1, 1, 1}, {0, 1, 0}};
  for (Case& c : cases) {
    const auto spec_for = [&](Device& device) {
      PlanSpec spec = make_spec(device, c.model);
      if (c.narrow > 0) narrow_ffn(device, spec, c.model, c.narrow);
      return spec;
    };
    std::vector<float> expected;
    for (const std::string& tier : Device::tiers()) {
      for (const int threads : {1, 2, 5}) {
        const auto device = open(threads, tier);
        if (expected.empty()) expected = logits_of(*device, spread(spec_for(*device)), steps);
        CHECK(logits_of(*device, spec_for(*device), steps) == expected);
      }
    }
    for (const float x : expected) CHECK(std::isfinite(x));
  }
}

TEST(a_sequence_that_reads_what_another_one_writes_waits_for_it) {
  for (const int threads : {1, 2}) {
    const auto device = open(threads);
    Step whole;
    whole.want_logits = true;
    whole.tokens = {1, 2, 3, 4, 5, 6};
    whole.sequences = {{6, 6, {3}}};
    whole.outputs = {0, 1, 2, 3, 4, 5};
    Step parts = whole;
    parts.sequences = {{1, 1, {3}}, {2, 3, {3}}, {3, 6, {3}}};
    const auto expected = run(*device, device->compile(make_spec(*device, {})), whole).logits;
    CHECK(run(*device, device->compile(make_spec(*device, {})), parts).logits == expected);
  }
}

TEST(what_is_not_finite_has_the_same_name_as_by_one_operation_after_another) {
  // Tokens 1 to 3 have one large column each, by which a norm's weights make them fail where they shall.
  enum : int32_t { kGood, kNoHead, kNoPage, kNoFfn };
  struct Case {
    Step step;
    const char* message;
    bool only_f16 = false;
  };
  const std::vector<Case> cases = {
      {step_of({kGood, kNoHead, kNoHead}),
       "queries or keys of row 1 (sequence 1, position 0) are not finite at blk.0.qk_norm"},
      {step_of({kNoPage, kGood, kNoHead}),
       "queries or keys of row 2 (sequence 2, position 0) are not finite at blk.0.qk_norm"},
      {step_of({kGood, kNoPage, kNoPage}), "of row 1 (sequence 1, position 0) are not finite at blk.0.kv",
       true},
      {step_of({kNoPage}),
       "keys or values, as float16 (up to 65504; pages of other types hold more), of row 0", true},
      // Pages that nobody has written.
      {step_of({kGood, kGood, kGood}, 10),
       "activations of row 1 (sequence 1, position 9) are not finite at blk.0.attn_output"},
      {step_of({kGood, kNoFfn, kNoFfn}),
       "activations of row 1 (sequence 1, position 0) are not finite at blk.0.ffn_down"},
      {step_of({kNoFfn}), "activations of row 0 (sequence 0, position 0) are not finite at blk.0.ffn_down"},
  };
  for (const KvType type : {KvType::kF16, KvType::kF32, KvType::kQ8}) {
    MiniModel model;
    model.kv_type = type;
    const auto device = open(2);
    PlanSpec spec = make_spec(*device, model);
    auto values = std::make_shared<std::vector<float>>(Random(3).normals(300 * 256));
    for (int32_t token = 0; token < 300; ++token) {
      for (int32_t c = 1; c < 4; ++c)
        (*values)[static_cast<size_t>(token * 256 + c)] = token == c ? 1000.0f : 0.0f;
    }
    std::get<EmbedOp>(spec.ops[0].op).table =
        load(*device, {{"token_embd", DataType::kF32, 300, reinterpret_cast<const uint8_t*>(values->data())}},
             256, values);
    const auto weights = [](std::vector<std::pair<int, float>> large) {
      std::vector<float> w(256, 1.0f);
      for (const auto& [c, x] : large) w[static_cast<size_t>(c)] = x;
      return std::make_shared<const Vector>("norm", w);
    };
    op_named<RmsNormOp>(spec, "blk.0.attn_norm").weight = weights({{kNoHead, 1e25f}, {kNoPage, 1e6f}});
    op_named<RmsNormOp>(spec, "blk.0.ffn_norm").weight = weights({{kNoFfn, 2e19f}});
    for (const Case& c : cases) {
      if (c.only_f16 && type != KvType::kF16) continue;
      const auto message = [&](const PlanSpec& plan) {
        return message_of(ErrorCode::kNonFinite, [&] { run(*device, device->compile(plan), c.step); });
      };
      const std::string found = message(spec);
      CHECK(contains(found, c.message));
      CHECK(found == message(spread(spec)));
    }
  }
}

TEST_MAIN()
