#pragma once
// Keywords and vector types of CUDA C++.
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// One grid runs at a time, its blocks one after another.
#define __shared__ static
#ifndef __clang__
#define __builtin_assume(condition) ((void)0)
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define NIWAKI_VECTOR_TYPES(type, scalar, align2, align4)                 \
  struct __align__(align2) type##2 { scalar x, y; };                      \
  struct __align__(align4) type##4 { scalar x, y, z, w; };                \
  constexpr type##2 make_##type##2(scalar x, scalar y) { return {x, y}; } \
  constexpr type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
NIWAKI_VECTOR_TYPES(char, signed char, 2, 4)
NIWAKI_VECTOR_TYPES(uchar, unsigned char, 2, 4)
NIWAKI_VECTOR_TYPES(short, short, 4, 8)
NIWAKI_VECTOR_TYPES(ushort, unsigned short, 4, 8)
NIWAKI_VECTOR_TYPES(int, int, 8, 16)
NIWAKI_VECTOR_TYPES(uint, unsigned, 8, 16)
NIWAKI_VECTOR_TYPES(float, float, 8, 16)
NIWAKI_VECTOR_TYPES(longlong, long long, 16, 16)
NIWAKI_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
NIWAKI_VECTOR_TYPES(double, double, 16, 16)
#undef NIWAKI_VECTOR_TYPES
