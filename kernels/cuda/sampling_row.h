#pragma once
// What the kernels of sampling share: a step's samples as they are uploaded, and a row of logits, slice by
// slice.
#include <cfloat>
#include <cstdint>

#include "cuda/block_ops.h"
#include "niwaki/step.h"

namespace niwaki::cuda {

struct TokenBias {
  int32_t token;
  float bias;
};

/// A SampleSpec; the pointers are into device memory.
struct alignas(16) SampleRow {
  uint64_t seed;
  const int32_t* history;
  const TokenBias* biases;  // by token; those of one token in the order of the specification
  TokenLogprob* top;        // [logprobs], the host's as well as the GPU's
  int32_t history_length, bias_count;
  int32_t output, top_k, logprobs;
  float temperature, top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;

  __device__ bool adjusts() const { return bias_count > 0 || history_length > 0; }
  /// Whether the draw is among the most likely tokens, in that order; else among all, in the order of their
  /// ids.
  __device__ bool is_limited(int32_t vocabulary) const {
    return (top_k > 0 && top_k < vocabulary) || top_p < 1;
  }
};

enum class SampleStatus : int32_t { kChosen, kNotFinite, kAllBanned };

struct SampleOutput {
  int32_t token;
  float logprob;
  SampleStatus status;
};

/// `count` SampleRows follow it. What the pointers are to is the host's as well as the GPU's.
struct alignas(16) SampleTable {
  int32_t count;
  unsigned long long* first_bad;  // a copy of StepView::first_bad
  SampleOutput* outputs;

  __device__ const SampleRow& operator[](int32_t i) const {
    return reinterpret_cast<const SampleRow*>(this + 1)[i];
  }
};

// A token and its value in one word: descending words are descending values, ties ascending tokens. No value
// is NaN.

using Ranked = unsigned long long;

__device__ inline Ranked ranked(float value, int32_t token) {
  const uint32_t bits = __float_as_uint(value + 0.0f);  // -0 is 0
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<Ranked>(ordered) << 32 | static_cast<uint32_t>(~token);
}
__device__ inline int32_t token_of(Ranked word) {
  return static_cast<int32_t>(~static_cast<uint32_t>(word));
}
__device__ inline float value_of(Ranked word) {
  const auto ordered = static_cast<uint32_t>(word >> 32);
  return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

/// e^x for x <= 0, not NaN, with the bits of cpu/simd.h.
__device__ inline float exp_of(float x) {
  const float t = fmaxf(-105.0f, x);
  const float shifted = fmaf(t, 0x1.715476p+0f, 0x1.8p23f);
  const float n = shifted - 0x1.8p23f;
  const float r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, t));
  float p = 0x1.6a508ep-10f;
  p = fmaf(p, r, 0x1.123978p-7f);
  p = fmaf(p, r, 0x1.5558acp-5f);
  p = fmaf(p, r, 0x1.555492p-3f);
  p = fmaf(p, r, 0x1.fffffcp-2f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  const int32_t exponent = __float_as_int(shifted) - 0x4b400000, half = exponent >> 1;
  const auto power = [](int32_t e) { return __int_as_float((e + 127) << 23); };
  return p * power(half) * power(exponent - half);
}

/// Weights exp((x - top) / temperature), 0 where they are below `least`.
struct Softmax {
  float top, temperature, least;

  __device__ float weight(float x) const {
    const float w = exp_of((x - top) / temperature);
    return w < least ? 0.0f : w;
  }
};

constexpr int kSamplingThreads = 512, kEach = 8, kSlice = kSamplingThreads * kEach;
using SamplingOps = BlockOps<kSamplingThreads / 32>;

/// Shared memory to adjust a slice of logits in.
struct SliceRoom {
  float values[kSlice];
  int32_t counts[kSlice];  // how often a token stands in the history
};

/// Logits of one row, of which a block holds a slice at a time: x[i] is that of token begin + i *
/// kSamplingThreads + threadIdx.x.
struct LogitRow {
  const float* logits;
  int32_t vocabulary;

  __device__ static int32_t token(int32_t begin, int i) {
    return begin + i * kSamplingThreads + static_cast<int32_t>(threadIdx.x);
  }

  /// -infinity beyond the vocabulary.
  __device__ void load(int32_t begin, float (&x)[kEach]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = token(begin, i) < vocabulary ? logits[token(begin, i)] : -INFINITY;
  }

  /// Biases and penalties, by all threads of the block.
  __device__ void adjust(const SampleRow& row, int32_t begin, SliceRoom& room, float (&x)[kEach]) const {
    // What leaves the range of float stays its end: no penalty makes an infinity, and only a bias bans.
    const auto clamp = [](float v) { return fminf(fmaxf(v, -FLT_MAX), FLT_MAX); };
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      room.values[token(0, i)] = x[i];
      room.counts[token(0, i)] = 0;
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < row.history_length; i += kSamplingThreads) {
      const int32_t at = row.history[i] - begin;
      if (at >= 0 && at < kSlice) atomicAdd(&room.counts[at], 1);
    }
    for (int32_t i = threadIdx.x; i < row.bias_count; i += kSamplingThreads) {
      const int32_t biased = row.biases[i].token, at = biased - begin;
      if (at < 0 || at >= kSlice || (i > 0 && row.biases[i - 1].token == biased)) continue;
      float v = room.values[at];
      for (int32_t j = i; j < row.bias_count && row.biases[j].token == biased; ++j) {
        const float bias = row.biases[j].bias;
        v = bias == -INFINITY || v == -INFINITY ? -INFINITY : clamp(v + bias);
      }
      room.values[at] = v;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float v = room.values[token(0, i)];
      const int32_t count = room.counts[token(0, i)];
      if (count > 0 && v != -INFINITY) {
        v = clamp(v > 0 ? v / row.repetition_penalty : v * row.repetition_penalty);
        v = clamp(v - row.presence_penalty);
        v = clamp(v - clamp(row.frequency_penalty * static_cast<float>(count)));
      }
      x[i] = v;
    }
  }
};

}  // namespace niwaki::cuda
