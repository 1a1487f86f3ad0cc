#pragma once
// cuda_fp16.h: every operation is rounded once, to nearest even.
#include <cmath>
#include <cstring>

#include "cpu/float16.h"
#include "cuda/emulated/types.h"

struct __half {
  uint16_t bits;

  __half() = default;
  __half(float value) : bits(niwaki::float_to_half(value)) {}
  explicit __half(double value) : bits(from_double(value)) {}
  explicit __half(int value) : bits(from_double(value)) {}
  operator float() const { return niwaki::half_to_float(bits); }

  static __half of_bits(uint16_t bits) {
    __half half;
    half.bits = bits;
    return half;
  }

  /// Through float32 rounded to odd, so that the second rounding is as if it were the only one.
  static uint16_t from_double(double value) {
    float narrow = static_cast<float>(value);
    if (static_cast<double>(narrow) != value && std::isfinite(value)) {
      uint32_t pattern;
      std::memcpy(&pattern, &narrow, sizeof pattern);
      const bool away = std::fabs(static_cast<double>(narrow)) > std::fabs(value);
      if (away) --pattern;
      pattern |= 1;
      std::memcpy(&narrow, &pattern, sizeof narrow);
    }
    return niwaki::float_to_half(narrow);
  }
};
struct __align__(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half x_, __half y_) : x(x_), y(y_) {}
};
using half = __half;
using half2 = __half2;

inline __half __float2half_rn(float v) {
  return __half(v);
}
inline __half __float2half(float v) {
  return __half(v);
}
inline float __half2float(__half v) {
  return niwaki::half_to_float(v.bits);
}
inline __half __double2half(double v) {
  return __half(v);
}
inline __half __int2half_rn(int v) {
  return __half(v);
}
inline unsigned short __half_as_ushort(__half v) {
  return v.bits;
}
inline short __half_as_short(__half v) {
  return static_cast<short>(v.bits);
}
inline __half __ushort_as_half(unsigned short v) {
  return __half::of_bits(v);
}
inline __half __short_as_half(short v) {
  return __half::of_bits(static_cast<uint16_t>(v));
}
inline float2 __half22float2(__half2 v) {
  return {__half2float(v.x), __half2float(v.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__half(x), __half(y)};
}
inline __half2 __float22half2_rn(float2 v) {
  return {__half(v.x), __half(v.y)};
}
inline __half2 __float2half2_rn(float v) {
  return {__half(v), __half(v)};
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __half2 make_half2(__half x, __half y) {
  return {x, y};
}
inline __half2 __half2half2(__half v) {
  return {v, v};
}
inline __half __low2half(__half2 v) {
  return v.x;
}
inline __half __high2half(__half2 v) {
  return v.y;
}
inline float __low2float(__half2 v) {
  return __half2float(v.x);
}
inline float __high2float(__half2 v) {
  return __half2float(v.y);
}
inline __half2 __lowhigh2highlow(__half2 v) {
  return {v.y, v.x};
}

// Sums and products of two halves are exact in float64, and so is enough of a fused one.
inline __half __hadd(__half a, __half b) {
  return __half(double(float(a)) + double(float(b)));
}
inline __half __hsub(__half a, __half b) {
  return __half(double(float(a)) - double(float(b)));
}
inline __half __hmul(__half a, __half b) {
  return __half(double(float(a)) * double(float(b)));
}
inline __half __hdiv(__half a, __half b) {
  return __half(double(float(a)) / double(float(b)));
}
inline __half __hfma(__half a, __half b, __half c) {
  return __half(double(float(a)) * double(float(b)) + double(float(c)));
}
inline __half __hneg(__half a) {
  return __half::of_bits(a.bits ^ 0x8000);
}
inline __half __habs(__half a) {
  return __half::of_bits(a.bits & 0x7fff);
}
inline bool __hisnan(__half a) {
  return (a.bits & 0x7fff) > 0x7c00;
}
inline __half __hmax(__half a, __half b) {
  return __half(fmaxf(float(a), float(b)));
}
inline __half __hmin(__half a, __half b) {
  return __half(fminf(float(a), float(b)));
}
inline __half2 __hadd2(__half2 a, __half2 b) {
  return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline __half2 __hsub2(__half2 a, __half2 b) {
  return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __half2 __hneg2(__half2 a) {
  return {__hneg(a.x), __hneg(a.y)};
}
inline __half2 __habs2(__half2 a) {
  return {__habs(a.x), __habs(a.y)};
}
inline __half2 __hmax2(__half2 a, __half2 b) {
  return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
}
inline __half2 __hmin2(__half2 a, __half2 b) {
  return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
}
inline __half operator+(__half a, __half b) {
  return __hadd(a, b);
}
inline __half operator-(__half a, __half b) {
  return __hsub(a, b);
}
inline __half operator*(__half a, __half b) {
  return __hmul(a, b);
}
inline __half operator/(__half a, __half b) {
  return __hdiv(a, b);
}
inline __half2 operator+(__half2 a, __half2 b) {
  return __hadd2(a, b);
}
inline __half2 operator-(__half2 a, __half2 b) {
  return __hsub2(a, b);
}
inline __half2 operator*(__half2 a, __half2 b) {
  return __hmul2(a, b);
}
