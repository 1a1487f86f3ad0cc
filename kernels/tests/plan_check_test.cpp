#include "src/plan_check.h"

#include <cmath>
#include <functional>
#include <limits>

#include "cpu/kv_cache.h"
#include "niwaki/error.h"
#include "tests/check.h"
#include "tests/mini_model.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = INFINITY;

const PlanSpec& good_spec() {
  static const std::shared_ptr<Device> device = Device::open({1, ""});
  static const PlanSpec spec = make_spec(*device, {});
  return spec;
}

/// The message with which a changed plan is refused, "" if it is not.
std::string plan_error(const std::function<void(PlanSpec&)>& change) {
  PlanSpec spec = good_spec();
  change(spec);
  try {
    check_plan(spec);
    return "";
  } catch (const Error& error) {
    return error.code == ErrorCode::kInvalidArgument ? error.what() : "another code";
  }
}

/// Changes the operation of that label.
template <class OpType>
std::string op_error(const std::string& label, const std::function<void(OpType&)>& change) {
  return plan_error([&](PlanSpec& spec) {
    for (LabeledOp& op : spec.ops) {
      if (op.label == label) change(std::get<OpType>(op.op));
    }
  });
}

Step good_step() {
  Step step;
  step.tokens = {1, 2, 3, 4, 299};
  step.sequences = {{3, 20, {7, 8}}, {2, 2, {0}}};
  step.outputs = {2, 4};
  step.samples.resize(1);
  step.samples[0].output = 1;
  return step;
}

std::string step_error(const std::function<void(Step&)>& change) {
  Step step = good_step();
  change(step);
  try {
    check_step(good_spec(), step);
    return "";
  } catch (const Error& error) {
    return error.code == ErrorCode::kInvalidArgument ? error.what() : "another code";
  }
}
std::string sample_error(const std::function<void(SampleSpec&)>& change) {
  return step_error([&](Step& step) { change(step.samples[0]); });
}

bool is(const std::string& got, const std::string& expected) {
  if (got != expected) std::printf("  got \"%s\"\n", got.c_str());
  return got == expected;
}

}  // namespace

TEST(good_plans_and_steps_pass) {
  CHECK(is(plan_error([](PlanSpec&) {}), ""));
  CHECK(is(step_error([](Step&) {}), ""));
  CHECK(kv_blocks(good_spec()) == 40);
  CHECK(is(step_error([](Step& s) { s.outputs.clear(), s.samples.clear(); }), ""));
  CHECK(is(step_error([](Step& s) { s.sequences[1].block_table = {0, -1}; }), ""));  // beyond what is needed
}

TEST(sizes_of_a_plan) {
  CHECK(is(plan_error([](PlanSpec& s) { s.max_rows = 0; }), "plan: max_rows must be at least 1, got 0"));
  CHECK(is(plan_error([](PlanSpec& s) { s.max_outputs = 65; }),
           "plan: max_outputs must be 1 to max_rows (64), got 65"));
  CHECK(is(plan_error([](PlanSpec& s) { s.max_outputs = 0; }),
           "plan: max_outputs must be 1 to max_rows (64), got 0"));
  CHECK(is(plan_error([](PlanSpec& s) { s.block_size = 24; }),
           "plan: block_size must be a positive multiple of 16, got 24"));
  CHECK(is(plan_error([](PlanSpec& s) { s.vocabulary = 0; }), "plan: vocabulary must be at least 1, got 0"));
  CHECK(is(plan_error([](PlanSpec& s) { s.vocabulary = 299; }),
           "plan: the logits must be as wide as the vocabulary (299), got 300"));
  CHECK(is(plan_error([](PlanSpec& s) { s.buffers[4].width = 0; }),
           "plan: buffer 4 must be 1 to 2147483647 wide, got 0"));
  CHECK(is(plan_error([](PlanSpec& s) { s.logits = 8; }), "plan: logits is buffer 8, but the plan has 8"));
  CHECK(
      is(plan_error([](PlanSpec& s) { s.logits = 0; }), "plan: the logits must be a buffer of output rows"));
  CHECK(is(plan_error([](PlanSpec& s) { s.ops.pop_back(); }),
           "plan: logits is buffer 7, which no operation before this one has written"));
  CHECK(is(plan_error([](PlanSpec& s) { s.block_size = 32; }),
           "blk.0.kv: the KV cache has blocks of 16 tokens, the plan of 32"));
}

TEST(operations_of_a_plan) {
  CHECK(is(op_error<EmbedOp>("token_embd", [](EmbedOp& o) { o.out = -1; }),
           "token_embd: out is buffer -1, but the plan has 8"));
  CHECK(is(op_error<EmbedOp>("token_embd", [](EmbedOp& o) { o.table = nullptr; }),
           "token_embd: the table is missing"));
  CHECK(is(op_error<EmbedOp>("token_embd", [](EmbedOp& o) { o.out = 2; }),
           "token_embd: out must be 256 wide, got 512"));
  CHECK(is(op_error<EmbedOp>("token_embd", [](EmbedOp& o) { o.out = 6; }),
           "token_embd: out must be a buffer of all rows, not of output rows"));
  CHECK(is(plan_error([](PlanSpec& s) { s.vocabulary = 301; }),
           "token_embd: the table must have a row for each of 301 tokens, got 300"));
  CHECK(is(op_error<RopeTableOp>("rope", [](RopeTableOp& o) { o.rope.head_dim = 128; }),
           "rope: out must be 128 wide, got 64"));
  CHECK(is(op_error<RmsNormOp>("blk.0.attn_norm", [](RmsNormOp& o) { o.in = 4; }),
           "blk.0.attn_norm: in is buffer 4, which no operation before this one has written"));
  CHECK(is(op_error<RmsNormOp>("blk.1.attn_norm", [](RmsNormOp& o) { o.eps = kNan; }),
           "blk.1.attn_norm: eps must be finite and at least 0, got nan"));
  CHECK(is(op_error<RmsNormOp>("output_norm", [](RmsNormOp& o) { o.out = 1; }),
           "output_norm: in and out must both be of all rows or of output rows"));
  CHECK(is(op_error<RmsNormOp>("output_norm", [](RmsNormOp& o) { o.out = 7; }),
           "output_norm: out must be 256 wide, got 300"));
  CHECK(is(op_error<LinearOp>("blk.0.attn_qkv", [](LinearOp& o) { o.in = 3; }),
           "blk.0.attn_qkv: in must be 256 wide, got 64"));
  CHECK(is(op_error<LinearOp>("blk.0.attn_qkv", [](LinearOp& o) { o.out = 1; }),
           "blk.0.attn_qkv: in and out must be two buffers"));
  CHECK(is(op_error<LinearOp>("blk.0.attn_qkv", [](LinearOp& o) { o.accumulate = true; }),
           "blk.0.attn_qkv: out is buffer 2, which no operation before this one has written"));
  CHECK(is(op_error<LinearOp>("blk.0.ffn_gate_up", [](LinearOp& o) { o.activation = Activation::kNone; }),
           "blk.0.ffn_gate_up: out must be 768 wide, got 384"));
  CHECK(is(op_error<LinearOp>("blk.1.ffn_gate_up", [](LinearOp& o) { o.accumulate = true; }),
           "blk.1.ffn_gate_up: SwiGLU cannot be accumulated"));
  CHECK(is(op_error<QkNormRopeOp>("blk.0.qk_norm", [](QkNormRopeOp& o) { o.layout.kv_heads = 3; }),
           "blk.0.qk_norm: heads must be a multiple of kv_heads, got 4 and 3"));
  CHECK(is(op_error<QkNormRopeOp>("blk.0.qk_norm", [](QkNormRopeOp& o) { o.layout.head_dim = 40; }),
           "blk.0.qk_norm: head_dim must be a positive multiple of 16, got 40"));
  CHECK(is(op_error<QkNormRopeOp>("blk.0.qk_norm", [](QkNormRopeOp& o) { o.layout.heads = 2; }),
           "blk.0.qk_norm: qkv must be 384 wide, got 512"));
  CHECK(is(op_error<QkNormRopeOp>("blk.0.qk_norm", [](QkNormRopeOp& o) { o.rope = 0; }),
           "blk.0.qk_norm: rope must be 64 wide, got 256"));
  CHECK(is(op_error<QkNormRopeOp>("blk.0.qk_norm",
                                  [](QkNormRopeOp& o) {
                                    o.k_norm = std::make_shared<const Vector>("k", std::vector<float>(63));
                                  }),
           "blk.0.qk_norm: k_norm must be 64 wide, got 63"));
  CHECK(is(op_error<KvStoreOp>("blk.0.kv", [](KvStoreOp& o) { o.layer = 2; }),
           "blk.0.kv: layer must be 0 to 1, got 2"));
  CHECK(is(op_error<KvStoreOp>("blk.0.kv", [](KvStoreOp& o) { o.kv = nullptr; }),
           "blk.0.kv: the KV cache is missing"));
  CHECK(is(op_error<KvStoreOp>("blk.0.kv",
                               [](KvStoreOp& o) {
                                 o.layout = {6, 1, 64};
                               }),
           "blk.0.kv: the KV cache has 2 heads of 64, the layer 1 of 64"));
  CHECK(is(op_error<PagedAttentionOp>("blk.0.attn", [](PagedAttentionOp& o) { o.out = 2; }),
           "blk.0.attn: out must be 256 wide, got 512"));
  CHECK(is(op_error<PagedAttentionOp>("blk.0.attn", [](PagedAttentionOp& o) { o.layer = -1; }),
           "blk.0.attn: layer must be 0 to 1, got -1"));
  CHECK(is(op_error<SelectOutputsOp>("select", [](SelectOutputsOp& o) { o.out = 1; }),
           "select: out must be a buffer of output rows"));
}

TEST(rows_and_sequences_of_a_step) {
  CHECK(is(step_error([](Step& s) { s.tokens.clear(); }), "step: must have 1 to 64 rows, got 0"));
  CHECK(is(step_error([](Step& s) { s.tokens.resize(65); }), "step: must have 1 to 64 rows, got 65"));
  CHECK(is(step_error([](Step& s) { s.tokens[4] = 300; }), "step: row 4: token must be 0 to 299, got 300"));
  CHECK(is(step_error([](Step& s) { s.tokens[0] = -1; }), "step: row 0: token must be 0 to 299, got -1"));
  CHECK(is(step_error([](Step& s) { s.sequences.pop_back(); }),
           "step: the row counts of its sequences must sum to its 5 rows, got 3"));
  CHECK(is(step_error([](Step& s) { s.sequences[0].row_count = 4; }),
           "step: the row counts of its sequences must sum to its 5 rows, got more"));
  CHECK(is(step_error([](Step& s) { s.sequences[0].row_count = 0; }),
           "step: sequence 0: row_count must be at least 1, got 0"));
  CHECK(is(step_error([](Step& s) { s.sequences[1].row_count = -2; }),
           "step: sequence 1: row_count must be at least 1, got -2"));
  CHECK(is(step_error([](Step& s) { s.sequences[1].context_length = 1; }),
           "step: sequence 1: context_length must be at least row_count, got 1"));
  CHECK(is(step_error([](Step& s) { s.sequences[0].context_length = 33; }),
           "step: sequence 0: block_table must have 3 blocks for 33 tokens, got 2"));
  CHECK(is(step_error([](Step& s) { s.sequences[0].context_length = INT32_MAX; }),
           "step: sequence 0: block_table must have 134217728 blocks for 2147483647 tokens, got 2"));
  CHECK(is(step_error([](Step& s) { s.sequences[0].block_table[0] = 40; }),
           "step: sequence 0: block_table[0] must be 0 to 39, got 40"));
  CHECK(is(step_error([](Step& s) { s.sequences[1].block_table[0] = -1; }),
           "step: sequence 1: block_table[0] must be 0 to 39, got -1"));
  CHECK(is(step_error([](Step& s) {
             s.sequences[0] = {3, 3, {0}};
           }),
           "step: two rows write slot 0 of block 0"));
}

TEST(outputs_and_samples_of_a_step) {
  CHECK(is(step_error([](Step& s) {
             s.outputs = {2, 5};
           }),
           "step: output rows must be ascending and 0 to 4, got 5 at 1"));
  CHECK(is(step_error([](Step& s) {
             s.outputs = {-1, 2};
           }),
           "step: output rows must be ascending and 0 to 4, got -1 at 0"));
  CHECK(is(step_error([](Step& s) {
             s.outputs = {2, 2};
           }),
           "step: output rows must be ascending and 0 to 4, got 2 at 1"));
  CHECK(is(sample_error([](SampleSpec& s) { s.output = 2; }),
           "step: sample 0: output must be an index into the step's 2 output rows, got 2"));
  CHECK(is(sample_error([](SampleSpec& s) { s.temperature = kNan; }),
           "step: sample 0: temperature must be finite and at least 0, got nan"));
  CHECK(sample_error([](SampleSpec& s) { s.temperature = -1; }).find("temperature") != std::string::npos);
  CHECK(is(sample_error([](SampleSpec& s) { s.top_k = -1; }),
           "step: sample 0: top_k must be at least 0, got -1"));
  CHECK(sample_error([](SampleSpec& s) { s.top_p = 1.5f; }).find("top_p must be 0 to 1") !=
        std::string::npos);
  CHECK(sample_error([](SampleSpec& s) { s.min_p = kNan; }).find("min_p must be 0 to 1") !=
        std::string::npos);
  CHECK(sample_error([](SampleSpec& s) { s.repetition_penalty = 0; }).find("repetition_penalty") !=
        std::string::npos);
  CHECK(sample_error([](SampleSpec& s) { s.presence_penalty = kInf; }).find("presence_penalty") !=
        std::string::npos);
  CHECK(sample_error([](SampleSpec& s) { s.frequency_penalty = kNan; }).find("frequency_penalty") !=
        std::string::npos);
  CHECK(is(sample_error([](SampleSpec& s) { s.logprobs = 301; }),
           "step: sample 0: logprobs must be -1 to the vocabulary's size, got 301"));
  CHECK(is(sample_error([](SampleSpec& s) {
             s.history = {1, 300};
           }),
           "step: sample 0: a token of history must be 0 to 299, got 300"));
  CHECK(is(sample_error([](SampleSpec& s) {
             s.bias = {{-1, 1.0f}};
           }),
           "step: sample 0: a token of bias must be 0 to 299, got -1"));
  CHECK(is(sample_error([](SampleSpec& s) {
             s.bias = {{1, kInf}};
           }),
           "step: sample 0: a bias must be finite or -infinity, got inf"));
  CHECK(is(sample_error([](SampleSpec& s) {
             s.bias = {{1, kNan}};
           }),
           "step: sample 0: a bias must be finite or -infinity, got nan"));
  CHECK(is(sample_error([](SampleSpec& s) { s.bias = {{1, -kInf}}; }), ""));
}

TEST(what_steps_that_follow_need) {
  const auto error = [](auto change) {
    return step_error([&](Step& s) {
      s.sequences = {{3, 10, {0}}, {2, 12, {1}}};
      s.outputs = {2, 4};
      s.samples.resize(2);
      s.samples[0].output = 0;
      s.samples[1].output = 1;
      s.following = 4;
      change(s);
    });
  };
  CHECK(is(error([](Step&) {}), ""));
  CHECK(is(error([](Step& s) { s.following = -1; }), "step: following must be at least 0, got -1"));
  CHECK(is(error([](Step& s) { s.following = 5; }),
           "step: sequence 1: block_table must have 2 blocks for 17 tokens, got 1"));
  CHECK(is(error([](Step& s) {
             s.sequences[0] = {3, 10, {0, 1}};
             s.sequences[1] = {2, 12, {2, 1}};
             s.following = 20;
           }),
           "step: two rows write slot 0 of block 1"));
  const std::string start = "step: where steps follow, ";
  CHECK(is(error([](Step& s) { s.want_logits = true; }), start + "logits cannot be wanted"));
  CHECK(is(error([](Step& s) { s.samples.pop_back(); }),
           start + "every sequence must have one output row and one sample"));
  CHECK(is(error([](Step& s) {
             s.outputs = {2, 3};
           }),
           start + "output and sample 1 must be of the last row of sequence 1"));
  CHECK(is(error([](Step& s) { std::swap(s.samples[0], s.samples[1]); }),
           start + "output and sample 0 must be of the last row of sequence 0"));
  CHECK(is(error([](Step& s) { s.samples[1].history = {5}; }),
           start + "samples cannot have a history, got one for sample 1"));
  CHECK(is(error([](Step& s) {
             s.samples[1].stop_tokens = {5, 300};
           }),
           "step: sample 1: a stop token must be 0 to 299, got 300"));
}

TEST(kv_caches) {
  const auto refused = [](KvShape shape, ErrorCode code) {
    try {
      CpuKvCache cache(shape);
      return false;
    } catch (const Error& error) {
      return error.code == code;
    }
  };
  CHECK(refused({0, 1, 16, 16, 1, KvType::kF16}, ErrorCode::kInvalidArgument));
  CHECK(refused({1, 0, 16, 16, 1, KvType::kF16}, ErrorCode::kInvalidArgument));
  CHECK(refused({1, 1, 24, 16, 1, KvType::kF16}, ErrorCode::kInvalidArgument));
  CHECK(refused({1, 1, 16, 8, 1, KvType::kF16}, ErrorCode::kInvalidArgument));
  CHECK(refused({1, 1, 16, 16, 0, KvType::kF16}, ErrorCode::kInvalidArgument));
  CHECK(refused({1, 1, 16, 16, 1, static_cast<KvType>(3)}, ErrorCode::kInvalidArgument));
  CHECK(refused({1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, KvType::kF32}, ErrorCode::kOutOfMemory));
  const CpuKvCache cache({2, 3, 32, 16, 5, KvType::kF16});
  CHECK(cache.bytes() == 2u * 3 * 32 * 16 * 5 * 2 * 2);
  CHECK(cache.keys(0, 0, 0) == cache.layer(0) &&
        cache.values(1, 4, 2) + 32 * 16 * 2 == cache.layer(0) + cache.bytes());
  const CpuKvCache integers({2, 3, 32, 16, 5, KvType::kQ8});
  CHECK(integers.bytes() == 2u * 3 * (32 + 4) * 16 * 5 * 2);  // a scale for each token
  CHECK(integers.keys(0, 1, 0) == integers.keys(0, 0, 0) + (32 + 4) * 16);
}

TEST(pages_lie_in_runs_and_never_overlap) {
  for (const int32_t blocks : {1, 5, 64, 130, 200}) {
    const CpuKvCache cache({2, 3, 128, 16, blocks, KvType::kF16});  // pages of 4 KB: runs of 64 blocks
    constexpr int64_t kPage = 128 * 16 * 2;
    std::vector<bool> taken(cache.bytes() / kPage);
    const auto take = [&](const std::byte* page) {
      const int64_t offset = page - cache.layer(0);
      CHECK(offset >= 0 && offset % kPage == 0 && offset < static_cast<int64_t>(cache.bytes()));
      CHECK(!taken[static_cast<size_t>(offset / kPage)]);
      taken[static_cast<size_t>(offset / kPage)] = true;
    };
    for (int32_t layer = 0; layer < 2; ++layer) {
      for (int32_t block = 0; block < blocks; ++block) {
        for (int32_t head = 0; head < 3; ++head) {
          take(cache.keys(layer, block, head));
          take(cache.values(layer, block, head));
          if (block % 64 == 0) continue;
          CHECK(cache.keys(layer, block, head) == cache.keys(layer, block - 1, head) + kPage);
          CHECK(cache.values(layer, block, head) == cache.values(layer, block - 1, head) + kPage);
        }
      }
    }
  }
}

TEST_MAIN()
