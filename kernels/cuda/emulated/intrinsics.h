#pragma once
// Functions of one thread: numbers, bits, memory, atomics.
#include <math.h>

#include <bit>
#include <chrono>
#include <cstring>

#include "cuda/emulated/half.h"
#include "cuda/emulated/types.h"

// The mixed ones are unsigned, as in CUDA.
#define NIWAKI_MIN_MAX(type)                                   \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
NIWAKI_MIN_MAX(int)
NIWAKI_MIN_MAX(unsigned)
NIWAKI_MIN_MAX(long)
NIWAKI_MIN_MAX(unsigned long)
NIWAKI_MIN_MAX(long long)
NIWAKI_MIN_MAX(unsigned long long)
#undef NIWAKI_MIN_MAX
constexpr unsigned min(unsigned a, int b) {
  return min(a, static_cast<unsigned>(b));
}
constexpr unsigned min(int a, unsigned b) {
  return min(static_cast<unsigned>(a), b);
}
constexpr unsigned max(unsigned a, int b) {
  return max(a, static_cast<unsigned>(b));
}
constexpr unsigned max(int a, unsigned b) {
  return max(static_cast<unsigned>(a), b);
}
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}

inline float rsqrtf(float v) {
  return static_cast<float>(1 / sqrt(static_cast<double>(v)));
}
inline double rsqrt(double v) {
  return 1 / sqrt(v);
}
inline float __expf(float v) {
  return expf(v);
}
inline float __logf(float v) {
  return logf(v);
}
inline float __log2f(float v) {
  return log2f(v);
}
inline float __sinf(float v) {
  return sinf(v);
}
inline float __cosf(float v) {
  return cosf(v);
}
inline float __tanhf(float v) {
  return tanhf(v);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float v) {
  return v > 0 ? fminf(v, 1) : 0;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float v) {
  return 1 / v;
}
inline float __fsqrt_rn(float v) {
  return sqrtf(v);
}
inline float __frsqrt_rn(float v) {
  return rsqrtf(v);
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}

namespace niwaki::cuda::emulated {

/// As the hardware converts: values out of range saturate, NaN is zero.
template <class Integer, class Float>
Integer saturated(Float rounded) {
  if (rounded != rounded) return 0;
  constexpr Integer low = std::numeric_limits<Integer>::min(), high = std::numeric_limits<Integer>::max();
  if (rounded <= static_cast<Float>(low)) return low;
  return rounded >= static_cast<Float>(high) ? high : static_cast<Integer>(rounded);
}

}  // namespace niwaki::cuda::emulated

inline int __float2int_rn(float v) {
  return niwaki::cuda::emulated::saturated<int>(nearbyintf(v));
}
inline int __float2int_rz(float v) {
  return niwaki::cuda::emulated::saturated<int>(truncf(v));
}
inline int __float2int_rd(float v) {
  return niwaki::cuda::emulated::saturated<int>(floorf(v));
}
inline int __float2int_ru(float v) {
  return niwaki::cuda::emulated::saturated<int>(ceilf(v));
}
inline unsigned __float2uint_rn(float v) {
  return niwaki::cuda::emulated::saturated<unsigned>(nearbyintf(v));
}
inline unsigned __float2uint_rz(float v) {
  return niwaki::cuda::emulated::saturated<unsigned>(truncf(v));
}
inline int __double2int_rn(double v) {
  return niwaki::cuda::emulated::saturated<int>(nearbyint(v));
}
inline float __int2float_rn(int v) {
  return static_cast<float>(v);
}
inline float __uint2float_rn(unsigned v) {
  return static_cast<float>(v);
}
inline float __double2float_rn(double v) {
  return static_cast<float>(v);
}
inline float __ll2float_rn(long long v) {
  return static_cast<float>(v);
}
inline unsigned __float_as_uint(float v) {
  return std::bit_cast<unsigned>(v);
}
inline int __float_as_int(float v) {
  return std::bit_cast<int>(v);
}
inline float __uint_as_float(unsigned v) {
  return std::bit_cast<float>(v);
}
inline float __int_as_float(int v) {
  return std::bit_cast<float>(v);
}
inline long long __double_as_longlong(double v) {
  return std::bit_cast<long long>(v);
}
inline double __longlong_as_double(long long v) {
  return std::bit_cast<double>(v);
}

inline int __popc(unsigned v) {
  return std::popcount(v);
}
inline int __popcll(unsigned long long v) {
  return std::popcount(v);
}
inline int __clz(int v) {
  return std::countl_zero(static_cast<unsigned>(v));
}
inline int __clzll(long long v) {
  return std::countl_zero(static_cast<unsigned long long>(v));
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
inline unsigned __brev(unsigned v) {
  v = (v >> 1 & 0x55555555) | (v & 0x55555555) << 1;
  v = (v >> 2 & 0x33333333) | (v & 0x33333333) << 2;
  v = (v >> 4 & 0x0f0f0f0f) | (v & 0x0f0f0f0f) << 4;
  return __builtin_bswap32(v);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> 4 * i;
    unsigned byte = bytes >> 8 * (choice & 7) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign of the byte
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum =
        static_cast<int>(static_cast<unsigned>(sum) + static_cast<unsigned>(static_cast<int8_t>(a >> 8 * i) *
                                                                            static_cast<int8_t>(b >> 8 * i)));
  }
  return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
  return sum;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldca(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, const T& value) {
  *address = value;
}
template <class T>
void __stcg(T* address, const T& value) {
  *address = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
inline long long clock64() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

// One grid runs at a time, on one thread of the system.
#define NIWAKI_ATOMICS(type)                          \
  inline type atomicAdd(type* address, type value) {  \
    const type old = *address;                        \
    *address = old + value;                           \
    return old;                                       \
  }                                                   \
  inline type atomicExch(type* address, type value) { \
    const type old = *address;                        \
    *address = value;                                 \
    return old;                                       \
  }
NIWAKI_ATOMICS(int)
NIWAKI_ATOMICS(unsigned)
NIWAKI_ATOMICS(unsigned long long)
NIWAKI_ATOMICS(float)
NIWAKI_ATOMICS(double)
#undef NIWAKI_ATOMICS
#define NIWAKI_INTEGER_ATOMICS(type)                                                                 \
  inline type atomicMin(type* address, type value) {                                                 \
    return atomicExch(address, value < *address ? value : *address);                                 \
  }                                                                                                  \
  inline type atomicMax(type* address, type value) {                                                 \
    return atomicExch(address, value < *address ? *address : value);                                 \
  }                                                                                                  \
  inline type atomicAnd(type* address, type value) { return atomicExch(address, *address & value); } \
  inline type atomicOr(type* address, type value) { return atomicExch(address, *address | value); }  \
  inline type atomicXor(type* address, type value) { return atomicExch(address, *address ^ value); } \
  inline type atomicCAS(type* address, type expected, type value) {                                  \
    return atomicExch(address, *address == expected ? value : *address);                             \
  }
NIWAKI_INTEGER_ATOMICS(int)
NIWAKI_INTEGER_ATOMICS(unsigned)
NIWAKI_INTEGER_ATOMICS(unsigned long long)
#undef NIWAKI_INTEGER_ATOMICS
inline int atomicSub(int* address, int value) {
  return atomicAdd(address, -value);
}
inline unsigned atomicSub(unsigned* address, unsigned value) {
  return atomicAdd(address, 0u - value);
}
