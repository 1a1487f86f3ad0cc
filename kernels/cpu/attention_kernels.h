#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/kv_cache.h"

namespace niwaki {

/// The work of attention that shares the pages of one KV head: consecutive rows of one sequence and the query
/// heads of the group. Every (row, query head) is computed alone and in one order, whatever else is in the
/// tile:
///
///   for every span of attention_span() tokens up to the row's position, ascending, its tokens t up to the
///   row's position:
///     s[t] = (q[0] k[0][t] + q[1] k[1][t] + ... by fma, d ascending) * f[t]
///     m'   = max(m, max s),  c = exp(m - m'),  p[t] = exp(s[t] - m')
///     l[t mod 16] = l[t mod 16] * c + p[t]                 by fma, t ascending, c once a span
///     a[d] = a[d] * c, then a[d] + w[t] v[t][d]            by fma, t ascending
///   out[d] = a[d] * (1 / l), l's lanes added as a tree
///
///   float pages:  f[t] = scale,                  w[t] = p[t]
///   q8 pages:     f[t] = scale * key scale of t, w[t] = p[t] * value scale of t, k and v are the integers
///
/// Slots after a row's position are never part of a sum, whatever their memory holds.
struct AttentionTile {
  const float* q;    // first row, first head of the group: heads are adjacent
  int64_t q_stride;  // floats from row to row
  int32_t rows;
  int32_t group;  // query heads of this KV head
  int32_t head_dim;
  int32_t first_position;  // of the first row
  const int32_t* block_table;
  const std::byte* layer;  // its pages, as `layout` has them
  KvLayout layout;
  int32_t kv_head;
  int32_t block_size;
  KvType type;
  float scale;
  float* out;  // first row, first head of the group
  int64_t out_stride;
  float* scratch;  // attention_scratch() floats, 64-byte aligned

  /// What the thread comes to after this tile, in the same layer: its first pages are asked for in time.
  struct Next {
    const int32_t* block_table;
    int32_t blocks;  // none if nothing follows
    int32_t kv_head;
  } next;
};

/// Tokens that one step of the online softmax takes, whole blocks: about 64, so that its cost is small beside
/// the products. Spans are counted from position 0.
constexpr int32_t attention_span(int32_t block_size) {
  return block_size < 64 ? 64 / block_size * block_size : block_size;
}

/// Floats of scratch for a tile of `units` = rows * group.
constexpr int64_t attention_scratch(int64_t units, int64_t head_dim, int32_t block_size) {
  const int64_t padded = (units + 15) / 16 * 16, span = attention_span(block_size);
  return units * (head_dim + span + 16) + 3 * padded + 2 * span + 2 * head_dim * span;
}

struct AttentionKernels {
  void (*attend)(const AttentionTile& tile);

  /// Stores one head of one token, `slot` being its place in the page: keys (x[d] to page[d][slot]) and
  /// values (x[d] to page[slot][d]). False if a value is not finite in the page's type; what the page then
  /// holds in that slot is of no use.
  bool (*store_key)(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
                    std::byte* page);
  bool (*store_value)(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
                      std::byte* page);
};

extern const AttentionKernels kPortableAttentionKernels;
extern const AttentionKernels kAvx2AttentionKernels;
extern const AttentionKernels kAvx512AttentionKernels;
extern const AttentionKernels kNeonAttentionKernels;

}  // namespace niwaki
