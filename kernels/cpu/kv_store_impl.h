// How keys and values come into the pages of kv_cache.h, over F32x16; a tier's attention.cpp includes this
// after choosing its simd.h.
#pragma once
#include "cpu/kv_cache.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

constexpr uint32_t kAllLanes = 0xffff;

/// Stores x[d] at to[d * stride]. False if a value is not finite.
inline bool store_floats(const float* x, int32_t head_dim, int64_t stride, float* to) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    ok = ok && finite(F32x16::load(x + d)) == kAllLanes;
    for (int i = d; i < d + kLanes; ++i) to[i * stride] = x[i];
  }
  return ok;
}

/// The same as float16; false if one is not finite as such.
inline bool store_halves(const float* x, int32_t head_dim, int64_t stride, uint16_t* to) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    uint16_t h[kLanes];
    F32x16::load(x + d).store_f16(h);
    ok = ok && finite(F32x16::load_f16(h)) == kAllLanes;
    for (int i = 0; i < kLanes; ++i) to[(d + i) * stride] = h[i];
  }
  return ok;
}

/// The same as integers, x[d] / scale rounded to nearest, ties to even. The scale is, of kScales from
/// max |x| / 127.4 up, the one of least squared error, which for 64 numbers is a tenth less than at max |x| /
/// 127. Where the scale would be below the normal floats, the numbers count as zeros.
inline bool store_integers(const float* x, int32_t head_dim, int64_t stride, int8_t* to, float* scale) {
  constexpr int kScales = 8;
  bool ok = true;
  F32x16 top = F32x16::zero();
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    const F32x16 v = F32x16::load(x + d);
    ok = ok && finite(v) == kAllLanes;
    top = max(abs(v), top);
  }
  if (!ok) return false;
  const float largest_number = largest(top);
  const F32x16 shift = F32x16::broadcast(0x1.8p23f);
  float inverse = 0, best = 0, least = __builtin_inff();
  for (int i = 0; i < kScales && largest_number >= 0x1p-119f; ++i) {
    const float levels = 127.4f - 0.4f * static_cast<float>(i), step = largest_number / levels;
    const F32x16 steps = F32x16::broadcast(step), inverses = F32x16::broadcast(levels / largest_number);
    // In units of the largest number, so that no square leaves the range of a float.
    const F32x16 unit = F32x16::broadcast(1 / largest_number);
    F32x16 error = F32x16::zero();
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      const F32x16 v = F32x16::load(x + d), rounded = fma(v, inverses, shift) - shift;
      const F32x16 off = fma(negate(rounded), steps, v) * unit;
      error = fma(off, off, error);
    }
    const float total = sum(error);
    if (total < least) {
      least = total;
      best = step;
      inverse = levels / largest_number;
    }
  }
  *scale = best;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    float rounded[kLanes];
    (fma(F32x16::load(x + d), F32x16::broadcast(inverse), shift) - shift).store(rounded);
    for (int i = 0; i < kLanes; ++i) to[(d + i) * stride] = static_cast<int8_t>(rounded[i]);
  }
  return true;
}

/// Stores a token whose numbers begin at `at` of its page, `stride` apart.
inline bool store_token(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, int64_t at,
                        int64_t stride, KvType type, std::byte* page) {
  switch (type) {
    case KvType::kF16:
      return store_halves(x, head_dim, stride, reinterpret_cast<uint16_t*>(page) + at);
    case KvType::kF32:
      return store_floats(x, head_dim, stride, reinterpret_cast<float*>(page) + at);
    case KvType::kQ8: {
      auto* scales = reinterpret_cast<float*>(page + static_cast<int64_t>(head_dim) * block_size);
      return store_integers(x, head_dim, stride, reinterpret_cast<int8_t*>(page) + at, scales + slot);
    }
  }
  return false;
}

bool store_key(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
               std::byte* page) {
  return store_token(x, head_dim, block_size, slot, slot, block_size, type, page);
}

bool store_value(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
                 std::byte* page) {
  return store_token(x, head_dim, block_size, slot, static_cast<int64_t>(slot) * head_dim, 1, type, page);
}

}  // namespace
}  // namespace niwaki
