// Sixteen float lanes, for code that is written once and compiled for every tier. Include it in a tier's .cpp
// only: cpu/avx512/*.cpp define NIWAKI_SIMD_AVX512 first, cpu/avx2/*.cpp NIWAKI_SIMD_AVX2, cpu/neon/*.cpp
// NIWAKI_SIMD_NEON, cpu/portable/*.cpp nothing. Everything has internal linkage, so that the linker can never
// give code compiled for one instruction set to another; for the same reason a tier's file uses no template
// or inline function of the standard library that has a body of its own.
//
// Every operation is one IEEE operation per lane with the same result in every tier, NaN payloads aside. The
// compiler contracts nothing by itself (-ffp-contract=off): a fused multiply-add is written fma().
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(NIWAKI_SIMD_AVX2) || defined(NIWAKI_SIMD_AVX512)
#include <immintrin.h>
#elif defined(NIWAKI_SIMD_NEON)
#include <arm_neon.h>
#endif

/// For what stands in the innermost loops: gcc does not inline it into a kernel that it finds large, and a
/// call has every vector register stored and loaded again.
#define NIWAKI_INLINE __attribute__((always_inline)) inline

namespace niwaki {
namespace {

constexpr int kLanes = 16;

#if defined(NIWAKI_SIMD_AVX512)
#include "cpu/avx512/f32x16.h"
#elif defined(NIWAKI_SIMD_AVX2)
#include "cpu/avx2/f32x16.h"
#elif defined(NIWAKI_SIMD_NEON)
#include "cpu/neon/f32x16.h"
#else
#include "cpu/portable/f32x16.h"
#endif

// From here on one text for all tiers.

/// The first `n` of 16 values; the other lanes are `fill`. Reads nothing beyond.
inline F32x16 load_first(const float* p, int n, float fill = 0) {
  alignas(64) float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < n ? p[i] : fill;
  return F32x16::load(buffer);
}
inline void store_first(const F32x16& x, float* p, int n) {
  alignas(64) float buffer[kLanes];
  x.store(buffer);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

/// e^x within 1 ulp (2 in the subnormal range): 0 from -104 down, infinity from 88.73 up, NaN for NaN.
/// x = n ln 2 + r, |r| <= ln 2 / 2, and e^r is a minimax polynomial, 3e-9 off.
NIWAKI_INLINE F32x16 exp(const F32x16& x) {
  const auto c = [](float v) { return F32x16::broadcast(v); };
  // NaN passes both, as the second operand.
  const F32x16 t = max(c(-105.0f), min(c(89.0f), x));
  const F32x16 shifted = fma(t, c(0x1.715476p+0f), c(0x1.8p23f));
  const F32x16 n = shifted - c(0x1.8p23f);
  const F32x16 r = fma(n, c(-0x1.7f7d1cp-20f), fma(n, c(-0x1.62e4p-1f), t));
  F32x16 p = c(0x1.6a508ep-10f);
  p = fma(p, r, c(0x1.123978p-7f));
  p = fma(p, r, c(0x1.5558acp-5f));
  p = fma(p, r, c(0x1.555492p-3f));
  p = fma(p, r, c(0x1.fffffcp-2f));
  p = fma(p, r, c(1.0f));
  p = fma(p, r, c(1.0f));
  return scale(p, shifted);
}

/// x / (1 + e^-x)
inline F32x16 silu(const F32x16& x) {
  return x / (F32x16::broadcast(1.0f) + exp(negate(x)));
}

}  // namespace
}  // namespace niwaki
