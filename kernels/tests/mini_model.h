#pragma once
#include <algorithm>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "cpu/tier.h"
#include "niwaki/device.h"
#include "tests/random.h"

namespace niwaki::test {

/// A random transformer of two layers as a plan, so that a device runs everything it has.
struct MiniModel {
  int32_t layers = 2, hidden = 256, heads = 4, kv_heads = 2, head_dim = 64, ffn = 384, vocabulary = 300;
  int32_t max_rows = 64, max_outputs = 64, block_size = 16, blocks = 40;
  KvType kv_type = KvType::kF16;
  float embedding_scale = 1;
  bool quantized_embedding = false;
  RopeScaling scaling = RopeScaling::kYarn;
};

inline std::shared_ptr<const Matrix> load(Device& device, std::vector<MatrixSource> sources, int64_t columns,
                                          std::shared_ptr<void> bytes) {
  std::promise<std::shared_ptr<const Matrix>> loaded;
  device.load(std::move(sources), columns, std::move(bytes), [&](std::exception_ptr failure, auto matrix) {
    failure ? loaded.set_exception(failure) : loaded.set_value(std::move(matrix));
  });
  return loaded.get_future().get();
}

/// Q1_0 rows with random signs and scales near 1 / sqrt(columns), of one tensor or of two of equal rows.
inline std::shared_ptr<const Matrix> random_q1(Device& device, Random& random, const std::string& name,
                                               int64_t rows, int64_t columns, int tensors = 1) {
  const size_t row = row_bytes(DataType::kQ1_0, columns);
  auto bytes = std::make_shared<std::vector<uint8_t>>(row * static_cast<size_t>(rows));
  for (size_t i = 0; i < bytes->size(); i += 8) {
    const uint64_t eight = random.next();
    std::memcpy(bytes->data() + i, &eight, std::min<size_t>(8, bytes->size() - i));
  }
  for (size_t block = 0; block < bytes->size(); block += 18) {
    const auto scale = static_cast<uint16_t>(0x2c00 + random.below(0x300));  // 0.0625 and up
    std::memcpy(bytes->data() + block, &scale, 2);
  }
  std::vector<MatrixSource> sources;
  for (int i = 0; i < tensors; ++i) {
    sources.push_back({name + std::to_string(i), DataType::kQ1_0, rows / tensors,
                       bytes->data() + row * static_cast<size_t>(rows / tensors * i)});
  }
  return load(device, sources, columns, bytes);
}

inline std::shared_ptr<const Matrix> random_f32(Device& device, Random& random, const std::string& name,
                                                int64_t rows, int64_t columns, float scale) {
  auto values = std::make_shared<std::vector<float>>(
      random.normals(static_cast<size_t>(rows) * static_cast<size_t>(columns), scale));
  return load(device, {{name, DataType::kF32, rows, reinterpret_cast<const uint8_t*>(values->data())}},
              columns, values);
}

inline PlanSpec make_spec(Device& device, const MiniModel& m, uint64_t seed = 1) {
  Random random(seed);
  const auto norm = [&](int32_t n) {
    std::vector<float> weights = random.normals(static_cast<size_t>(n), 0.2f);
    for (float& w : weights) w += 1;
    return std::make_shared<const Vector>("norm", weights);
  };
  const QkvLayout layout{m.heads, m.kv_heads, m.head_dim};
  const int32_t q_width = m.heads * m.head_dim, qkv_width = q_width + 2 * m.kv_heads * m.head_dim;
  enum : BufferId { kHidden, kNormed, kQkv, kRope, kAttention, kFfn, kOutput, kLogits };

  PlanSpec spec{m.max_rows, m.max_outputs, m.vocabulary, m.block_size, {}, {}, kLogits};
  spec.buffers = {{m.hidden, false}, {m.hidden, false}, {qkv_width, false}, {m.head_dim, false},
                  {q_width, false},  {m.ffn, false},    {m.hidden, true},   {m.vocabulary, true}};
  const auto add = [&](const std::string& label, Op op) { spec.ops.push_back({std::move(op), label}); };

  const auto embedding =
      m.quantized_embedding
          ? random_q1(device, random, "token_embd", m.vocabulary, m.hidden)
          : random_f32(device, random, "token_embd", m.vocabulary, m.hidden, m.embedding_scale);
  const auto kv =
      device.create_kv_cache({m.layers, m.kv_heads, m.head_dim, m.block_size, m.blocks, m.kv_type});
  const std::vector<std::byte> nan(kv->all_layers_bytes(), std::byte{0xff});  // until written
  for (int32_t block = 0; block < m.blocks; ++block) kv->write_block(block, nan.data());

  add("token_embd", EmbedOp{embedding, kHidden});
  add("rope", RopeTableOp{{m.head_dim, 1e4, m.scaling, 4, 32, 32, 1, 1.1386}, kRope});
  for (int32_t l = 0; l < m.layers; ++l) {
    const std::string name = "blk." + std::to_string(l);
    add(name + ".attn_norm", RmsNormOp{kHidden, norm(m.hidden), kNormed, 1e-6f});
    add(name + ".attn_qkv",
        LinearOp{
            kNormed, random_q1(device, random, name + ".attn_qkv.", qkv_width, m.hidden), kQkv, false, {}});
    add(name + ".qk_norm", QkNormRopeOp{kQkv, layout, norm(m.head_dim), norm(m.head_dim), kRope, 1e-6f});
    add(name + ".kv", KvStoreOp{kQkv, layout, kv, l});
    add(name + ".attn", PagedAttentionOp{kQkv, layout, kv, l, kAttention});
    add(name + ".attn_output", LinearOp{kAttention,
                                        random_q1(device, random, name + ".attn_output.", m.hidden, q_width),
                                        kHidden,
                                        true,
                                        {}});
    add(name + ".ffn_norm", RmsNormOp{kHidden, norm(m.hidden), kNormed, 1e-6f});
    add(name + ".ffn_gate_up",
        LinearOp{kNormed, random_q1(device, random, name + ".ffn_gate_up.", 2 * m.ffn, m.hidden, 2), kFfn,
                 false, Activation::kSwiglu});
    add(name + ".ffn_down",
        LinearOp{kFfn, random_q1(device, random, name + ".ffn_down.", m.hidden, m.ffn), kHidden, true, {}});
  }
  add("select", SelectOutputsOp{kHidden, kOutput});
  add("output_norm", RmsNormOp{kOutput, norm(m.hidden), kOutput, 1e-6f});
  add("output", LinearOp{kOutput, embedding, kLogits, false, {}});
  return spec;
}

/// Runs a step and waits; throws what it threw.
inline StepResult run(Device& device, const std::shared_ptr<Plan>& plan, const Step& step) {
  std::promise<StepResult> ended;
  device.run(plan, step, [&](std::exception_ptr failure, StepResult result) {
    failure ? ended.set_exception(failure) : ended.set_value(std::move(result));
  });
  return ended.get_future().get();
}

}  // namespace niwaki::test
