#pragma once
// Paged attention: causal, grouped-query, any mix of prompt chunks and decode rows in one launch.
//
// A unit is one (row, query head). Its sums depend on its position and its sequence alone: on no other row,
// no tile, no split. The context is cut at multiples of kStepTokens into steps, and at multiples of
// span_tokens(position) into spans, at most kMostSpans of them:
//
//   for every span, ascending:
//     m = -inf, l = 0, o = 0
//     for every step, ascending, its tokens t up to the unit's position:
//       s[t] = q k[t], 16 dimensions a time, ascending
//       m'   = max(m, max s),  c = 2^(m - m'),  p[t] = 2^(s[t] - m') as float16
//       l    = l c + sum p[t],  o[d] = o[d] c + sum p[t] v[t][d], 16 tokens a time, ascending
//     M' = max(M, m),  a = 2^(M - M'),  b = 2^(m - M')
//     L  = L a + l b,  O[d] = O[d] a + o[d] b, by fma
//   out[d] = O[d] * (1 / L)
//
// q is multiplied by log2(e) / sqrt(head_dim), and q, k and v are float16. Sums of 16 are the matrix
// instruction's. Keys and values of q8 pages are integer * scale, rounded to float16.
#include <cstdint>
#include <vector>

#include "cuda/heads.h"
#include "cuda/kv_cache.h"
#include "cuda/quantize.h"
#include "cuda/step_view.h"
#include "niwaki/plan.h"
#include "niwaki/step.h"

namespace niwaki::cuda {

constexpr int kStepTokens = 64;
constexpr int kChunkTokens = 2 * kStepTokens;  // that shared memory holds: the shortest span
constexpr int kMostSpans = 32;

/// Of a row: a power of two.
constexpr int span_tokens(int position) {
  int tokens = kChunkTokens;
  while (position / tokens >= kMostSpans) tokens *= 2;
  return tokens;
}

/// Units that share the pages of a KV head: consecutive ones of a sequence, heads of the group fastest. All
/// spans of their context, or one span that another block adds to the others.
struct alignas(16) AttentionItem {
  int32_t first_row, first_head;  // of the first unit; the head within the group
  int32_t units;
  int32_t position;  // of first_row
  int32_t kv_head;
  int32_t table;       // where the block table of the sequence begins in StepView::tables
  int32_t begin, end;  // tokens; `begin` is where a span begins
  int32_t span_tokens;
  int32_t split;    // spans of the units, each an item of its own; 0: the item has them all
  int32_t record;   // if split: where the records of the units begin, [split][units]
  int32_t counter;  // if split: of the items that are done
  int32_t stored;   // tokens whose keys and values are in the pages before the step begins
};

/// What the lists of items, and the device memory beside them, are made for.
struct AttentionShape {
  QkvLayout layout;
  int32_t records;     // that there is scratch for
  int32_t processors;  // of the GPU
  int32_t block_size;  // of the KV cache
  /// Items of up to 64 units, not 16, for prompts (if head_dim is 64 or 128). Of the launch, too: it changes
  /// no bit, but the kernel for both leaves no registers for its neighbors in the stream.
  bool wide;
};

/// Whether attention can norm, turn and store the heads of a step itself (Attention::fused): all rows of a
/// sequence are in one narrow item for each KV head and span, and no sequence reads a block that another one
/// writes.
bool can_fuse_heads(const Step& step, const AttentionShape& shape);

/// Units times spans that one step may split: enough for 32 rows of 32 heads with kMostSpans (17 MB at a
/// head_dim of 128), less if `rows` rows of `context` tokens need less. Items that find no records left are
/// not split; so many keep the GPU busy as they are.
int32_t attention_records(const QkvLayout& layout, int32_t rows, int64_t context);

/// Most items of a step of so many rows, wide or not.
int64_t most_attention_items(const AttentionShape& shape, int32_t rows);

/// The items of a step, those with most work first. Its block tables are expected one after another in
/// StepView::tables, as they are in the step.
void list_attention(const Step& step, const AttentionShape& shape, std::vector<AttentionItem>& items);

/// Device memory that split items meet in; one for all layers of a plan.
struct AttentionScratch {
  float* sums;         // [records][head_dim]: O
  float2* totals;      // [records]: M, L
  uint32_t* counters;  // [records / 2]; zeros, and left so
};
constexpr size_t attention_scratch_bytes(int32_t records, int32_t head_dim) {
  return static_cast<size_t>(records) * (static_cast<size_t>(head_dim) * 4 + 8 + 2);
}
/// `memory`: attention_scratch_bytes of device memory, aligned to 256 bytes, its last 2 * records bytes (the
/// counters) zeros.
inline AttentionScratch attention_scratch(void* memory, int32_t records, int32_t head_dim) {
  auto* sums = static_cast<float*>(memory);
  auto* totals =
      reinterpret_cast<float2*>(sums + static_cast<size_t>(records) * static_cast<size_t>(head_dim));
  return {sums, totals, reinterpret_cast<uint32_t*>(totals + records)};
}

struct Attention {
  /// [rows][qkv_stride]: q normed and turned; keys and values are read from the pages. With `fused` what
  /// launch_norm_store takes.
  const float* qkv;
  int64_t qkv_stride;
  QkvLayout layout;
  KvPages pages;
  AttentionScratch scratch;
  float* out;  // [rows][out_stride], heads * head_dim each; null: not wanted
  int64_t out_stride;
  bool wide;   // AttentionShape::wide
  int32_t op;  // what report_bad names for queries that are not finite as float16 once scaled
  /// With `quantize` (head_dim is kGroup), the result also as the next operation takes it, head h as group h;
  /// it is named where a number is not finite.
  bool quantize;
  Quantized quantized;
  int32_t quantize_op;
  /// Does the work of launch_norm_store, too, with the same results but those in `qkv`; for steps that
  /// can_fuse_heads, not wide.
  bool fused;
  HeadNorm norm;
  int32_t store_op;  // HeadStore::op
};

constexpr int32_t kMostAttentionBlocks = 2;
/// Blocks that a GPU of so many processors runs at once: at most kMostAttentionBlocks on each.
int32_t attention_blocks(const Attention& attention, int32_t processors);

/// Pointers are of whole 16 bytes, strides (floats) multiples of 4, head_dim is a multiple of 16 up to 256.
/// `blocks`: of the grid, about attention_blocks; StepView::items has room for as many. Counts, items, block
/// tables and what pages hold of earlier steps are read before the kernel's predecessor in the stream has
/// ended: what writes them must not be a kernel before it that lets its successor start early.
void launch_attention(const StepView& step, const Attention& attention, int32_t blocks, cudaStream_t stream);

/// Asks for the shared memory that launch_attention takes; once per GPU, not while a graph is captured.
void prepare_attention();

}  // namespace niwaki::cuda
