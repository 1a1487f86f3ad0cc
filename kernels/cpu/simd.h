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

namespace niwaki {
namespace {

constexpr int kLanes = 16;

#if defined(NIWAKI_SIMD_AVX512)

struct F32x16 {
  __m512 v;

  static inline F32x16 zero() { return {_mm512_setzero_ps()}; }
  static inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  inline void store(float* p) const { _mm512_storeu_ps(p, v); }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
  }
  static inline F32x16 load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  friend inline F32x16 operator+(F32x16 x, F32x16 y) { return {_mm512_add_ps(x.v, y.v)}; }
  friend inline F32x16 operator-(F32x16 x, F32x16 y) { return {_mm512_sub_ps(x.v, y.v)}; }
  friend inline F32x16 operator*(F32x16 x, F32x16 y) { return {_mm512_mul_ps(x.v, y.v)}; }
  friend inline F32x16 operator/(F32x16 x, F32x16 y) { return {_mm512_div_ps(x.v, y.v)}; }
};

/// x * y + z, rounded once.
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm512_fmadd_ps(x.v, y.v, z.v)};
}
/// x > y ? x : y, so y where either is NaN.
inline F32x16 max(F32x16 x, F32x16 y) {
  return {_mm512_max_ps(x.v, y.v)};
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(F32x16 x, F32x16 y) {
  return {_mm512_min_ps(x.v, y.v)};
}
inline F32x16 abs(F32x16 x) {
  return {_mm512_and_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)))};
}
inline F32x16 negate(F32x16 x) {
  return {_mm512_xor_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN)))};
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, F32x16 x, F32x16 y) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(_mm512_set1_epi32(n), lane), y.v, x.v)};
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(F32x16 x, F32x16 y) {
  return _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ);
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(F32x16 x) {
  const F32x16 y = x - x;  // NaN unless finite
  return _mm512_cmp_ps_mask(y.v, y.v, _CMP_ORD_Q);
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(F32x16 x, F32x16 shifted) {
  const auto power = [](__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  };
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(0x4b400000));
  const __m512i half = _mm512_srai_epi32(n, 1);
  return {_mm512_mul_ps(_mm512_mul_ps(x.v, power(half)), power(_mm512_sub_epi32(n, half)))};
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(F32x16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The largest lane, none being NaN.
inline float largest(F32x16 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float square_root(float x) {
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
}

#elif defined(NIWAKI_SIMD_AVX2)

struct F32x16 {
  __m256 a, b;  // lanes 0..7, 8..15

  static inline F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static inline F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  inline void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    const auto widen = [](const uint16_t* q) {
      const __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
      return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    };
    return {widen(p), widen(p + 8)};
  }
  static inline F32x16 load_i8(const int8_t* p) {
    const auto widen = [](const int8_t* q) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q))));
    };
    return {widen(p), widen(p + 8)};
  }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
  }

  friend inline F32x16 operator+(F32x16 x, F32x16 y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
  }
  friend inline F32x16 operator-(F32x16 x, F32x16 y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
  }
  friend inline F32x16 operator*(F32x16 x, F32x16 y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
  }
  friend inline F32x16 operator/(F32x16 x, F32x16 y) {
    return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
  }
};

/// x * y + z, rounded once.
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
/// x > y ? x : y, so y where either is NaN.
inline F32x16 max(F32x16 x, F32x16 y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(F32x16 x, F32x16 y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
inline F32x16 abs(F32x16 x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline F32x16 negate(F32x16 x) {
  const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, F32x16 x, F32x16 y) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  const __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lane));
  return {_mm256_blendv_ps(y.a, x.a, a), _mm256_blendv_ps(y.b, x.b, b)};
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(F32x16 x, F32x16 y) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))) << 8;
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(F32x16 x) {
  const F32x16 y = x - x;  // NaN unless finite
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(y.a, y.a, _CMP_ORD_Q))) |
         static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(y.b, y.b, _CMP_ORD_Q))) << 8;
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(F32x16 x, F32x16 shifted) {
  const auto power = [](__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  };
  const auto apply = [&](__m256 v, __m256 s) {
    const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(s), _mm256_set1_epi32(0x4b400000));
    const __m256i half = _mm256_srai_epi32(n, 1);
    return _mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(_mm256_sub_epi32(n, half)));
  };
  return {apply(x.a, shifted.a), apply(x.b, shifted.b)};
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(F32x16 x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The largest lane, none being NaN.
inline float largest(F32x16 x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float square_root(float x) {
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
}

#elif defined(NIWAKI_SIMD_NEON)

#include "cpu/neon/f32x16.h"

#else  // portable

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
/// IEEE half precision, every value exactly.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // As a float of the same bits, half's exponent is off by 112: a power of two, exact for subnormals too.
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}
/// Rounds to nearest, ties to even; what is out of range becomes infinity.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves a last place of 2^-24, that of a subnormal half.
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

struct F32x16 {
  float lane[kLanes];

  template <class F>
  static inline F32x16 make(F&& f) {
    F32x16 r;
    for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
    return r;
  }
  static inline F32x16 zero() { return broadcast(0); }
  static inline F32x16 broadcast(float x) {
    return make([=](int) { return x; });
  }
  static inline F32x16 load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  inline void store(float* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = lane[i];
  }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return make([=](int i) { return half_to_float(p[i]); });
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    return make([=](int i) { return bits_float(static_cast<uint32_t>(p[i]) << 16); });
  }
  static inline F32x16 load_i8(const int8_t* p) {
    return make([=](int i) { return static_cast<float>(p[i]); });
  }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(lane[i]);
  }

  friend inline F32x16 operator+(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] + y.lane[i]; });
  }
  friend inline F32x16 operator-(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] - y.lane[i]; });
  }
  friend inline F32x16 operator*(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] * y.lane[i]; });
  }
  friend inline F32x16 operator/(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] / y.lane[i]; });
  }
};

/// x * y + z, rounded once.
inline F32x16 fma(const F32x16& x, const F32x16& y, const F32x16& z) {
  return F32x16::make([&](int i) { return __builtin_fmaf(x.lane[i], y.lane[i], z.lane[i]); });
}
/// x > y ? x : y, so y where either is NaN.
inline F32x16 max(const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline F32x16 abs(const F32x16& x) {
  return F32x16::make([&](int i) { return bits_float(float_bits(x.lane[i]) & 0x7fffffff); });
}
inline F32x16 negate(const F32x16& x) {
  return F32x16::make([&](int i) { return -x.lane[i]; });
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return i < n ? x.lane[i] : y.lane[i]; });
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(const F32x16& x, const F32x16& y) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(x.lane[i] > y.lane[i]) << i;
  return bits;
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(const F32x16& x) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i)
    bits |= static_cast<uint32_t>((float_bits(x.lane[i]) & 0x7f800000) != 0x7f800000) << i;
  return bits;
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(const F32x16& x, const F32x16& shifted) {
  const auto power = [](int32_t n) { return bits_float((static_cast<uint32_t>(n) + 127u) << 23); };
  return F32x16::make([&](int i) {
    const int32_t n = static_cast<int32_t>(float_bits(shifted.lane[i]) - 0x4b400000u);
    const int32_t half = n >> 1;
    return x.lane[i] * power(half) *
           power(static_cast<int32_t>(static_cast<uint32_t>(n) - static_cast<uint32_t>(half)));
  });
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(const F32x16& x) {
  float t[8];
  for (int i = 0; i < 8; ++i) t[i] = x.lane[i] + x.lane[i + 8];
  for (int i = 0; i < 4; ++i) t[i] += t[i + 4];
  for (int i = 0; i < 2; ++i) t[i] += t[i + 2];
  return t[0] + t[1];
}
/// The largest lane, none being NaN.
inline float largest(const F32x16& x) {
  float r = x.lane[0];
  for (int i = 1; i < kLanes; ++i) r = x.lane[i] > r ? x.lane[i] : r;
  return r;
}
inline float square_root(float x) {
  return std::sqrt(x);
}

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
inline F32x16 exp(const F32x16& x) {
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
