// What attention reads of a span: its pages as they are, or widened. For attention_kernels_impl.h alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/simd.h"
#include "cpu/stream_prefetch.h"

namespace niwaki {
namespace {

constexpr int kLine = 64;  // bytes that one prefetch brings

inline F32x16 load16(const float* p) {
  return F32x16::load(p);
}
inline F32x16 load16(const uint16_t* p) {
  return F32x16::load_f16(p);
}
inline F32x16 load16(const int8_t* p) {
  return F32x16::load_i8(p);
}

/// Always inline: gcc takes a function that only prefetches for one without an effect, and may drop its
/// calls.
NIWAKI_INLINE void prefetch(const void* p, int64_t bytes) {
  const auto* at = static_cast<const std::byte*>(p);
  if (kStreamIntoFirstLevel) {
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 0, 0);
  } else {
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i, 0, 2);
  }
}

/// Asks for pages bit by bit, in the order in which they lie: memory is read faster in one stream.
template <class T>
struct Ahead {
  const T* const* page;
  const T* const* end;
  int64_t numbers;  // of a page
  int64_t at;

  NIWAKI_INLINE void bring(int64_t count) {
    if (page == end) return;
    prefetch(*page + at, count * static_cast<int64_t>(sizeof(T)));
    at += count;
    if (at < numbers) return;
    at = 0;
    ++page;
  }
};

/// The pages of a span as they are in memory.
template <class T>
struct Pages {
  using Number = T;
  static constexpr int kMost = 4;  // blocks in a span
  int head_dim, block_size;
  const T* keys[kMost];
  const T* values[kMost];
  // Of what is read next.
  const T* next_keys[kMost];
  const T* next_values[kMost];
  Ahead<T> ahead_keys, ahead_values;

  int64_t key_stride() const { return block_size; }
  int64_t value_stride() const { return head_dim; }
  const T* key(int token) const { return keys[token / block_size] + token % block_size; }
  const T* value(int block, int d) const { return values[block] + d; }
};

/// The pages of a span as float32, for many units: what is read together lies together.
struct WidePages {
  using Number = float;
  int head_dim, block_size, span;
  float* keys;    // [token / 16][head_dim][16]
  float* values;  // [head_dim / 16][token][16]
  struct {
    void bring(int64_t) {}
  } ahead_keys{}, ahead_values{};

  int64_t key_stride() const { return kLanes; }
  int64_t value_stride() const { return kLanes; }
  const float* key(int token) const { return keys + static_cast<int64_t>(token) * head_dim; }
  const float* value(int block, int d) const {
    return values + static_cast<int64_t>(d) * span + block * block_size * kLanes;
  }

  template <class T>
  void fill(Pages<T>& pages, int tokens) const {
    for (int t = 0; t < tokens; t += kLanes) {
      const int64_t block = t / block_size, slot = t % block_size;
      float* to = keys + static_cast<int64_t>(t) * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) {
        pages.ahead_keys.bring(kLanes);
        load16(pages.keys[block] + d * block_size + slot).store(to + d * kLanes);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      const int64_t block = t / block_size, at = static_cast<int64_t>(t % block_size) * head_dim;
      float* to = values + static_cast<int64_t>(t) * kLanes;
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        pages.ahead_values.bring(kLanes);
        load16(pages.values[block] + at + d).store(to + d * span);
      }
    }
  }
};

}  // namespace
}  // namespace niwaki
