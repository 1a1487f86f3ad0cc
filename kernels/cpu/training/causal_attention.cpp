#include "cpu/training/causal_attention.h"

#include <algorithm>
#include <cmath>

namespace niwaki {
namespace {

constexpr int64_t kQueries = 64;  // that are computed together

int64_t padded(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

/// [rows][columns] as [columns][padded rows], padded with zeros.
void transpose(Rows from, int64_t rows, int64_t columns, float* to) {
  const int64_t stride = padded(rows);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * stride + r] = from.data[r * from.stride + c];
    for (int64_t r = rows; r < stride; ++r) to[c * stride + r] = 0;
  }
}

}  // namespace

/// Where the rows of a sequence have the queries of the first query head of a KV head, its keys and values,
/// and what attention gives; those of the next query head follow.
struct CausalAttention::Head {
  Rows q, k, v, out;
};

CausalAttention::CausalAttention(const TrainingKernels& kernels, const QkvLayout& layout,
                                 int64_t max_sequence)
    : kernels_(kernels),
      layout_(layout),
      columns_(padded(max_sequence)),
      scale_(1.0f / std::sqrt(static_cast<float>(layout.head_dim))) {}

int64_t CausalAttention::thread_floats() const {
  return 2 * columns_ * (layout_.head_dim + kQueries);
}

CausalAttention::Head CausalAttention::head(const SequenceRows& sequence, int64_t kv_head, Rows qk, Rows qkv,
                                            Rows out) const {
  const int64_t dim = layout_.head_dim, group = layout_.heads / layout_.kv_heads;
  const auto at = [&](Rows rows, int64_t index) {
    return Rows{rows.data + sequence.first * rows.stride + index * dim, rows.stride};
  };
  return {at(qk, kv_head * group), at(qk, layout_.heads + kv_head),
          at(qkv, layout_.heads + layout_.kv_heads + kv_head), at(out, kv_head * group)};
}

/// Of `rows` queries from `first` on, the rest of each row to a multiple of 16 being 0. Keys are transposed.
void CausalAttention::probabilities(Rows q, int64_t first, int64_t rows, const float* keys,
                                    int64_t keys_stride, float* out) const {
  const int64_t columns = padded(first + rows);
  kernels_.multiply({q.data + first * q.stride, q.stride, 1}, keys, keys_stride, rows, columns,
                    layout_.head_dim, 1, false, out, columns_);
  for (int64_t r = 0; r < rows; ++r) kernels_.softmax(out + r * columns_, first + r + 1, columns, scale_);
}

void CausalAttention::forward(ThreadPool& pool, std::span<const SequenceRows> sequences, Rows qk, Rows qkv,
                              Rows out, const std::vector<float*>& scratch) const {
  const int64_t dim = layout_.head_dim;
  const auto run = [&](const SequenceRows& sequence, int64_t kv_head, float* keys) {
    float* p = keys + dim * columns_;
    Head h = head(sequence, kv_head, qk, qkv, out);
    transpose(h.k, sequence.count, dim, keys);
    for (int32_t i = 0; i < layout_.heads / layout_.kv_heads; ++i, h.q.data += dim, h.out.data += dim) {
      for (int64_t first = 0; first < sequence.count; first += kQueries) {
        const int64_t rows = std::min(kQueries, sequence.count - first);
        probabilities(h.q, first, rows, keys, padded(sequence.count), p);
        kernels_.multiply({p, columns_, 1}, h.v.data, h.v.stride, rows, dim, first + rows, 1, false,
                          h.out.data + first * h.out.stride, h.out.stride);
      }
    }
  };
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>(sequences.size()) * layout_.kv_heads, 1, [&](int64_t item, int64_t) {
      run(sequences[static_cast<size_t>(item / layout_.kv_heads)], item % layout_.kv_heads,
          scratch[static_cast<size_t>(worker.index())]);
    });
  });
}

void CausalAttention::backward(ThreadPool& pool, std::span<const SequenceRows> sequences, Rows qk, Rows qkv,
                               Rows dout, Rows dqk, Rows dqkv, const std::vector<float*>& scratch) const {
  const int64_t dim = layout_.head_dim;
  const auto run = [&](const SequenceRows& sequence, int64_t kv_head, float* keys) {
    float* values = keys + dim * columns_;
    float* p = values + dim * columns_;
    float* dp = p + kQueries * columns_;
    const int64_t count = sequence.count, keys_stride = padded(count);
    Head h = head(sequence, kv_head, qk, qkv, dout), d = head(sequence, kv_head, dqk, dqkv, dout);
    transpose(h.k, count, dim, keys);
    transpose(h.v, count, dim, values);
    bool add = false;  // the last queries see every key, so they come first and leave nothing unwritten
    for (int32_t i = 0; i < layout_.heads / layout_.kv_heads; ++i) {
      for (int64_t first = (count - 1) / kQueries * kQueries; first >= 0; first -= kQueries) {
        const int64_t rows = std::min(kQueries, count - first), seen = first + rows;
        const float* q = h.q.data + first * h.q.stride;
        const float* dy = h.out.data + first * h.out.stride;
        probabilities(h.q, first, rows, keys, keys_stride, p);
        kernels_.multiply({p, 1, columns_}, dy, h.out.stride, seen, dim, rows, 1, add, d.v.data, d.v.stride);
        kernels_.multiply({dy, h.out.stride, 1}, values, keys_stride, rows, padded(seen), dim, 1, false, dp,
                          columns_);
        for (int64_t r = 0; r < rows; ++r)
          kernels_.softmax_backward(p + r * columns_, padded(seen), scale_, dp + r * columns_);
        kernels_.multiply({dp, columns_, 1}, h.k.data, h.k.stride, rows, dim, seen, 1, false,
                          d.q.data + first * d.q.stride, d.q.stride);
        kernels_.multiply({dp, 1, columns_}, q, h.q.stride, seen, dim, rows, 1, add, d.k.data, d.k.stride);
        add = true;
      }
      h.q.data += dim;
      h.out.data += dim;
      d.q.data += dim;
    }
  };
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>(sequences.size()) * layout_.kv_heads, 1, [&](int64_t item, int64_t) {
      run(sequences[static_cast<size_t>(item / layout_.kv_heads)], item % layout_.kv_heads,
          scratch[static_cast<size_t>(worker.index())]);
    });
  });
}

}  // namespace niwaki
