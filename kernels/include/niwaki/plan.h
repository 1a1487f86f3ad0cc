#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "niwaki/kv_cache.h"
#include "niwaki/matrix.h"

namespace niwaki {

/// An activation buffer of a plan: float32, [rows of the step, width], or [output rows of the step, width].
using BufferId = int32_t;
struct BufferSpec {
  int64_t width;
  bool per_output;
};

enum class RopeScaling : int32_t { kNone, kLinear, kYarn };

/// NeoX rotary embedding: dimension i turns with i + head_dim/2 by position * base^(-2i/head_dim).
/// Linear: positions divided by factor. YaRN (Peng et al., 2023): frequencies interpolated by the ramp
/// between beta_fast and beta_slow, cos and sin multiplied by attention_factor, at every position.
struct RopeSpec {
  int32_t head_dim;
  double base;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double original_context = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double attention_factor =
      1;  // YaRN: 0.1 ln(factor) + 1 unless the file says otherwise; the caller gives it
};

/// Q | K | V of a row: heads * head_dim, then kv_heads * head_dim twice.
struct QkvLayout {
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  friend bool operator==(const QkvLayout&, const QkvLayout&) = default;
};

enum class Activation : int32_t {
  kNone,
  kSwiglu,  // the matrix is gate over up, of equal rows: out = silu(gate) * up, half as wide
};

// The operations. Each reads and writes whole buffers; every row is computed alone and always in the same
// way.
struct EmbedOp {  // out[row] = table[token of row]
  std::shared_ptr<const Matrix> table;
  BufferId out;
};
struct RopeTableOp {  // out[row] = cos (head_dim/2) | sin (head_dim/2) of the row's position; once a step
  RopeSpec rope;
  BufferId out;
};
struct RmsNormOp {  // out = in / sqrt(mean(in^2) + eps) * weight
  BufferId in;
  std::shared_ptr<const Vector> weight;
  BufferId out;
  float eps;
};
struct LinearOp {  // out = matrix in, or out += matrix in
  BufferId in;
  std::shared_ptr<const Matrix> matrix;
  BufferId out;
  bool accumulate;
  Activation activation;
};
struct QkNormRopeOp {  // RMSNorm of every q head and k head over head_dim, then RoPE, in place
  BufferId qkv;
  QkvLayout layout;
  std::shared_ptr<const Vector> q_norm;
  std::shared_ptr<const Vector> k_norm;
  BufferId rope;
  float eps;
};
struct KvStoreOp {  // k and v of each row into the pages of its sequence
  BufferId qkv;
  QkvLayout layout;
  std::shared_ptr<KvCache> kv;
  int32_t layer;
};
struct PagedAttentionOp {  // causal, grouped-query, scale 1/sqrt(head_dim); out is [rows, heads * head_dim]
  BufferId qkv;
  QkvLayout layout;
  std::shared_ptr<KvCache> kv;
  int32_t layer;
  BufferId out;
};
struct SelectOutputsOp {  // out[i] = in[output row i]
  BufferId in;
  BufferId out;
};
using Op = std::variant<EmbedOp, RopeTableOp, RmsNormOp, LinearOp, QkNormRopeOp, KvStoreOp, PagedAttentionOp,
                        SelectOutputsOp>;

struct LabeledOp {
  Op op;
  std::string label;  // where in the model: "blk.3.attn_q"; errors carry it
};

struct PlanSpec {
  int32_t max_rows;     // of a step
  int32_t max_outputs;  // output rows of a step
  int32_t vocabulary;   // tokens are 0..vocabulary-1
  int32_t block_size;   // of the KV cache
  std::vector<BufferSpec> buffers;
  std::vector<LabeledOp> ops;
  BufferId logits;  // the per-output buffer that is sampled from
};

}  // namespace niwaki
