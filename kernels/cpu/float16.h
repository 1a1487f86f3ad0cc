#pragma once
#include <cstdint>
#include <cstring>

// Scalar conversions, exact for every bit pattern. Internal linkage: files of different instruction sets
// include this.
namespace niwaki {

/// IEEE 754 binary16 to float32: exact; NaN stays NaN.
static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // zero or subnormal: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// float32 to IEEE 754 binary16: round to nearest even, overflow to infinity, NaN stays (a quiet) NaN.
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal: 2^-14 and above
    const uint32_t shifted = magnitude - (112u << 23);
    half = (shifted + 0xfffu + (shifted >> 13 & 1u)) >> 13;
  } else {
    // Subnormal: adding 1/2 leaves value * 2^24, rounded to nearest even, in the low bits of the sum.
    float small;
    std::memcpy(&small, &magnitude, sizeof small);
    const float sum = small + 0.5f;
    uint32_t sum_bits;
    std::memcpy(&sum_bits, &sum, sizeof sum_bits);
    half = sum_bits - 0x3f000000u;
  }
  return static_cast<uint16_t>(half | sign);
}

/// bfloat16 to float32: exact.
static inline float bfloat16_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace niwaki
