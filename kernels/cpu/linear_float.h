// Matrices of float and 8- and 4-bit types with float activations, written once and compiled for every tier:
// include it in a tier's .cpp after cpu/simd.h. Weights become exact floats in registers.
#pragma once
#include "cpu/linear_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

inline float load_half(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
#if defined(NIWAKI_SIMD_AVX2) || defined(NIWAKI_SIMD_AVX512)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#elif defined(NIWAKI_SIMD_NEON)
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
#else
  return half_to_float(half);
#endif
}

/// Sixteen low or high nibbles, less 8.
inline F32x16 load_nibbles(const uint8_t* p, bool high) {
#if defined(NIWAKI_SIMD_AVX2) || defined(NIWAKI_SIMD_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i codes = _mm_and_si128(high ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
  const __m128i q = _mm_sub_epi8(codes, _mm_set1_epi8(8));
#if defined(NIWAKI_SIMD_AVX512)
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q))};
#else
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))};
#endif
#elif defined(NIWAKI_SIMD_NEON)
  const uint8x16_t bytes = vld1q_u8(p);
  const uint8x16_t codes = high ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
  return F32x16::from_i8(vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8)));
#else
  return F32x16::make([=](int i) { return static_cast<float>((high ? p[i] >> 4 : p[i] & 15) - 8); });
#endif
}

/// Weights c .. c+15 of a row; c is a multiple of 16.
template <DataType kType>
inline F32x16 load_weights(const uint8_t* row, int64_t c) {
  if constexpr (kType == DataType::kF32) {
    return F32x16::load(reinterpret_cast<const float*>(row) + c);
  } else if constexpr (kType == DataType::kF16) {
    return F32x16::load_f16(reinterpret_cast<const uint16_t*>(row) + c);
  } else if constexpr (kType == DataType::kBF16) {
    return F32x16::load_bf16(reinterpret_cast<const uint16_t*>(row) + c);
  } else if constexpr (kType == DataType::kQ8_0) {
    const uint8_t* block = row + c / 32 * 34;
    return F32x16::broadcast(load_half(block)) *
           F32x16::load_i8(reinterpret_cast<const int8_t*>(block + 2) + c % 32);
  } else {
    const uint8_t* block = row + c / 32 * 18;
    return F32x16::broadcast(load_half(block)) * load_nibbles(block + 2, c % 32 != 0);
  }
}

/// kRows weight rows times kTile rows of the step.
template <DataType kType, int kRows, int kTile>
inline void multiply_rows(const uint8_t* weights, size_t row_stride, int64_t columns, const float* x,
                          int64_t x_stride, float* out, int64_t out_stride) {
  F32x16 sums[kRows][kTile];
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTile; ++t) sums[r][t] = F32x16::zero();
  }
  for (int64_t c = 0; c < columns; c += kLanes) {
    for (int r = 0; r < kRows; ++r) {
      const F32x16 w = load_weights<kType>(weights + static_cast<size_t>(r) * row_stride, c);
      for (int t = 0; t < kTile; ++t) sums[r][t] = fma(w, F32x16::load(x + t * x_stride + c), sums[r][t]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTile; ++t) out[t * out_stride + r] = sum(sums[r][t]);
  }
}

template <DataType kType>
inline void multiply_type(const uint8_t* weights, size_t row_stride, int64_t rows, int64_t columns,
                          const float* x, int64_t x_stride, int tile_rows, float* out, int64_t out_stride) {
  int64_t r = 0;
  // One row of the step alone needs several weight rows at a time to hide the latency of fma; more have
  // enough sums, as many as stay in registers beside what unpacks the weights.
  constexpr int kTile = kType == DataType::kQ8_0 || kType == DataType::kQ4_0 ? 2 : 3;
  for (; tile_rows == 1 && r + 4 <= rows; r += 4) {
    multiply_rows<kType, 4, 1>(weights + static_cast<size_t>(r) * row_stride, row_stride, columns, x,
                               x_stride, out + r, out_stride);
  }
  for (; r + 2 <= rows; r += 2) {
    const uint8_t* w = weights + static_cast<size_t>(r) * row_stride;
    int t = 0;
    for (; t + kTile <= tile_rows; t += kTile) {
      multiply_rows<kType, 2, kTile>(w, row_stride, columns, x + t * x_stride, x_stride,
                                     out + t * out_stride + r, out_stride);
    }
    for (; t < tile_rows; ++t) {
      multiply_rows<kType, 2, 1>(w, row_stride, columns, x + t * x_stride, x_stride, out + t * out_stride + r,
                                 out_stride);
    }
  }
  for (; r < rows; ++r) {
    const uint8_t* w = weights + static_cast<size_t>(r) * row_stride;
    for (int t = 0; t < tile_rows; ++t) {
      multiply_rows<kType, 1, 1>(w, row_stride, columns, x + t * x_stride, x_stride, out + t * out_stride + r,
                                 out_stride);
    }
  }
}

/// See LinearKernels::multiply_float.
inline void multiply_float_rows(DataType type, const uint8_t* weights, size_t row_stride, int64_t rows,
                                int64_t columns, const float* x, int64_t x_stride, int tile_rows, float* out,
                                int64_t out_stride) {
  const auto run = [&](auto multiply) {
    multiply(weights, row_stride, rows, columns, x, x_stride, tile_rows, out, out_stride);
  };
  switch (type) {
    case DataType::kF32:
      return run(multiply_type<DataType::kF32>);
    case DataType::kF16:
      return run(multiply_type<DataType::kF16>);
    case DataType::kBF16:
      return run(multiply_type<DataType::kBF16>);
    case DataType::kQ8_0:
      return run(multiply_type<DataType::kQ8_0>);
    default:
      return run(multiply_type<DataType::kQ4_0>);
  }
}

/// See LinearKernels::swiglu.
inline void swiglu_rows(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes)
    (silu(F32x16::load(gate + i)) * F32x16::load(up + i)).store(out + i);
}

}  // namespace
}  // namespace niwaki
