// What attention reads of a span: its pages as they are, or widened. For attention_kernels_impl.h alone.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/simd.h"

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

inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(static_cast<const std::byte*>(p) + i);
}

/// The pages of a span as they are in memory.
template <class T>
struct Pages {
  using Number = T;
  static constexpr int kMost = 4;  // blocks in a span
  int head_dim, block_size;
  const T* keys[kMost];
  const T* values[kMost];
  // Of the next span. While keys are multiplied, the values of the same tokens are asked for, and meanwhile
  // of values the next keys.
  const T* next_keys[kMost];
  const T* next_values[kMost];

  int64_t key_stride() const { return block_size; }
  int64_t value_stride() const { return head_dim; }
  const T* key(int token) const { return keys[token / block_size] + token % block_size; }
  const T* value(int block, int d) const { return values[block] + d; }
  const T* beside_key(int token) const {
    return values[token / block_size] + static_cast<int64_t>(token % block_size) * head_dim;
  }
  const T* beside_value(int block, int d) const {
    return next_keys[block] + static_cast<int64_t>(d) * block_size;
  }
};

/// The pages of a span as float32, for many units: what is read together lies together.
struct WidePages {
  using Number = float;
  int head_dim, block_size, span;
  float* keys;    // [token / 16][head_dim][16]
  float* values;  // [head_dim / 16][token][16]

  int64_t key_stride() const { return kLanes; }
  int64_t value_stride() const { return kLanes; }
  const float* key(int token) const { return keys + static_cast<int64_t>(token) * head_dim; }
  const float* value(int block, int d) const {
    return values + static_cast<int64_t>(d) * span + block * block_size * kLanes;
  }
  const float* beside_key(int token) const { return key(token); }
  const float* beside_value(int block, int d) const { return value(block, d); }

  /// Meanwhile asks for the pages of the next span.
  template <class T>
  void fill(const Pages<T>& pages, int tokens) const {
    constexpr int64_t kBytes = kLanes * sizeof(T);
    for (int t = 0; t < tokens; t += kLanes) {
      const int64_t block = t / block_size, slot = t % block_size;
      float* to = keys + static_cast<int64_t>(t) * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) {
        prefetch(pages.next_keys[block] + d * block_size + slot, kBytes);
        load16(pages.keys[block] + d * block_size + slot).store(to + d * kLanes);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      const int64_t block = t / block_size, at = static_cast<int64_t>(t % block_size) * head_dim;
      float* to = values + static_cast<int64_t>(t) * kLanes;
      for (int64_t d = 0; d < head_dim; d += kLanes) {
        prefetch(pages.next_values[block] + at + d, kBytes);
        load16(pages.values[block] + at + d).store(to + d * span);
      }
    }
  }
};

}  // namespace
}  // namespace niwaki
