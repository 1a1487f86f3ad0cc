#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/thread_pool.h"
#include "cpu/training/lora_linear.h"
#include "cpu/training/training_kernels.h"
#include "niwaki/plan.h"

namespace niwaki {

/// Rows of a batch that are one sequence.
struct SequenceRows {
  int64_t first, count;
};

/// Causal attention with grouped queries, and its gradients. A thread takes a KV head of a sequence, all of
/// its query heads, and 64 queries at a time; the probabilities are computed again on the way back.
///
///   qk    Q (heads * head_dim) | K (kv_heads * head_dim)      qkv   V from (heads + kv_heads) * head_dim on
class CausalAttention {
 public:
  CausalAttention(const TrainingKernels& kernels, const QkvLayout& layout, int64_t max_sequence);

  /// Floats of scratch that each thread needs.
  int64_t thread_floats() const;

  void forward(ThreadPool& pool, std::span<const SequenceRows> sequences, Rows qk, Rows qkv, Rows out,
               const std::vector<float*>& scratch) const;

  /// Writes the gradients of Q and K into dqk and those of V into their place in dqkv.
  void backward(ThreadPool& pool, std::span<const SequenceRows> sequences, Rows qk, Rows qkv, Rows dout,
                Rows dqk, Rows dqkv, const std::vector<float*>& scratch) const;

 private:
  struct Head;
  Head head(const SequenceRows& sequence, int64_t kv_head, Rows qk, Rows qkv, Rows out) const;
  void probabilities(Rows q, int64_t first, int64_t rows, const float* keys, int64_t keys_stride,
                     float* out) const;

  const TrainingKernels& kernels_;
  QkvLayout layout_;
  int64_t columns_;  // of a row of probabilities at most
  float scale_;
};

}  // namespace niwaki
