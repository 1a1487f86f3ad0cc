#pragma once
#include <cstdint>

#include "cuda/primitives.h"
#include "cuda/step_view.h"
#include "cuda/warp.h"

namespace niwaki::cuda {

/// Columns that share a scale of activations.
constexpr int kGroup = 128;

/// Rows of activations as integers q of at most 511, in the order in which matrix instructions take them. Of
/// a group, column group_column(lane, t) belongs to a lane and a t of 0..3.
///
///   kBits1   [group][row][10 planes][4 words]: bit `lane` of word t of plane p is bit p of q; two's
///   complement kBits2   [half group][row][12 planes][4 words]: see pack_bits2 kHalves  [group][8 rows][16
///   cores][row][8 halves]: q as float16, for wgmma
enum class QuantizedLayout : int32_t { kBits1, kBits2, kHalves };

constexpr int kBits1Planes = 10, kBits2Planes = 11;
constexpr int kBits1Words = 40, kBits2Words = 48;  // of a (half) group and row

struct Quantized {
  QuantizedLayout layout;
  int32_t rows;  // that there is room for; kHalves: a multiple of 8
  uint8_t* data;
  float* scales;  // [group][rows]
  int32_t* sums;  // [group][2][rows]: of the integers of each half group
};

/// Bytes of the three, each a multiple of 256.
struct QuantizedBytes {
  size_t data, scales, sums;
  QuantizedBytes(QuantizedLayout layout, int64_t rows, int64_t columns) {
    const auto groups = static_cast<size_t>((columns + kGroup - 1) / kGroup), r = static_cast<size_t>(rows);
    const size_t each = layout == QuantizedLayout::kBits1   ? kBits1Words * 4
                        : layout == QuantizedLayout::kBits2 ? 2 * kBits2Words * 4
                                                            : kGroup * 2;
    const auto padded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
    data = padded(groups * r * each);
    scales = padded(groups * r * sizeof(float));
    sums = padded(groups * r * 2 * sizeof(int32_t));
  }
};

/// The column of a group that element t of a lane is.
__device__ inline int group_column(int lane, int t) {
  return (lane & 8) * 8 + 16 * t + (lane & 16) / 2 + (lane & 7);
}

/// Bits 0..15 of x at the even places.
__device__ inline uint32_t spread(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0fu;
  x = (x | x << 2) & 0x33333333u;
  return (x | x << 1) & 0x55555555u;
}

/// Two bits of a weight, b0 + 2 b1, lie beside each other: plane p has bit p of q at b0's place and bit p - 1
/// at b1's, so that the counts of plane p times 2^p (2^10: negative) sum to the product. Word t of half s is
/// of columns 64 s + 16 t + (0..15).
__device__ inline void pack_bits2(const Quantized& out, int row, int group, const uint32_t (&q)[4],
                                  int lane) {
  auto* words = reinterpret_cast<uint32_t*>(out.data);
  const int half = lane & 1, word = lane >> 1 & 3;
  uint32_t before = 0;
  for (int plane = 0; plane < kBits2Planes; ++plane) {
    const int p = plane < kBits1Planes ? plane : kBits1Planes - 1;  // the sign, once more
    uint32_t mine = 0;
    for (int t = 0; t < 4; ++t) {
      const uint32_t bits = __ballot_sync(kAllLanes, q[t] >> p & 1) >> 8 * half;
      if (t == word) mine = (bits & 0xff) | (bits >> 8 & 0xff00);
    }
    if (lane < 8) {
      const size_t at =
          (static_cast<size_t>(2 * group + half) * static_cast<size_t>(out.rows) + static_cast<size_t>(row)) *
          kBits2Words;
      words[at + static_cast<size_t>(4 * plane + word)] = spread(mine) | spread(before) << 1;
    }
    before = mine;
  }
}

/// Bit b of lane l becomes bit l of lane b.
__device__ inline uint32_t transpose_bits(uint32_t x) {
  const uint32_t lane = threadIdx.x & 31;
  uint32_t mask = 0xffffffff;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    mask ^= mask << distance;  // places without this bit
    const uint32_t other = __shfl_xor_sync(kAllLanes, x, distance);
    x = lane & static_cast<uint32_t>(distance) ? (x & ~mask) | (other >> distance & mask)
                                               : (x & mask) | (other << distance & ~mask);
  }
  return x;
}

/// See QuantizedLayout.
__device__ inline void pack_bits1(const Quantized& out, int row, int group, const uint32_t (&q)[4],
                                  int lane) {
  auto* words =
      reinterpret_cast<uint32_t*>(out.data) +
      (static_cast<size_t>(group) * static_cast<size_t>(out.rows) + static_cast<size_t>(row)) * kBits1Words;
  uint32_t low = 0, high = 0;  // bits 0..7, and 8 and 9, of each integer
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    low |= (q[t] & 0xff) << 8 * t;
    high |= (q[t] >> 8 & 3) << 2 * t;
  }
  words[lane % 8 * 4 + lane / 8] = transpose_bits(low);
  high = transpose_bits(high);
  if (lane < 8) words[32 + lane % 2 * 4 + lane / 2] = high;
}

/// By a whole warp: quantizes a group of a row as cpu/quantize.h does; a lane has the columns of
/// group_column, zeros beyond the row's end. The scale is stored times `factor`. Returns false in all lanes,
/// and stores nothing sensible, if one is NaN or infinite.
__device__ inline bool quantize_lanes(const Quantized& out, int row, int group, const float (&x)[4],
                                      float factor = 1) {
  constexpr uint32_t kInfinite = 0x7f800000u;
  const int lane = static_cast<int>(threadIdx.x & 31);
  // Bits of floats that are not negative are ordered as they are; NaN is above all.
  uint32_t most = 0;
#pragma unroll
  for (int t = 0; t < 4; ++t) most = max(most, __float_as_uint(x[t]) & 0x7fffffffu);
  most = __reduce_max_sync(kAllLanes, most);
  if (most >= kInfinite) return false;
  const float peak = __uint_as_float(most);
  float inverse = peak > 0 ? fminf(0x1p125f, __fdiv_rn(511.0f, peak)) : 0;
  // x * inverse, rounded to the nearest integer, in the low bits of a float of 1.5 * 2^23 more.
  constexpr float kShift = 0x1.8p23f;
  uint32_t q[4];
  int sum = 0, magnitude = 0;
  const auto round = [&] {
    sum = magnitude = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      q[t] = __float_as_uint(__fadd_rn(__fmul_rn(x[t], inverse), kShift));
      const int value = static_cast<int>(q[t]) - 0x4b400000;
      sum += value;
      magnitude += abs(value);
    }
  };
  round();
  if (__reduce_add_sync(kAllLanes, magnitude) > 32700) {  // all of a group are about as large
    float total = 0;
#pragma unroll
    for (int t = 0; t < 4; ++t) total += fabsf(x[t]) * 0x1p-7f;
    inverse = fminf(inverse, __fdiv_rn(32700.0f / 128.0f, warp_sum(total)));
    round();
  }
  const auto rows = static_cast<size_t>(out.rows), r = static_cast<size_t>(row),
             g = static_cast<size_t>(group);
  if (out.layout == QuantizedLayout::kHalves) {
    // A lane and the one 16 beside it have the even and the odd elements of a core's eight.
    uint32_t packed[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float value = __uint_as_float(q[t]) - kShift;
      packed[t] = pack_halves(value, __shfl_xor_sync(kAllLanes, value, 16));
    }
    if (lane < 16) {
      const size_t core = (g * (rows / 8) + r / 8) * 16 + static_cast<size_t>(lane);
      reinterpret_cast<uint4*>(out.data)[core * 8 + r % 8] =
          make_uint4(packed[0], packed[1], packed[2], packed[3]);
    }
  } else if (out.layout == QuantizedLayout::kBits1) {
    pack_bits1(out, row, group, q, lane);
  } else {
    pack_bits2(out, row, group, q, lane);
  }
  // Lanes with bit 3 set have the second half of the group.
  const int low = __reduce_add_sync(kAllLanes, lane & 8 ? 0 : sum), all = __reduce_add_sync(kAllLanes, sum);
  if (lane == 0) {
    out.scales[g * rows + r] = peak > 0 ? __fmul_rn(__frcp_rn(inverse), factor) : 0;
    out.sums[2 * g * rows + r] = low;
    out.sums[(2 * g + 1) * rows + r] = all - low;
  }
  return true;
}

/// The same, but lane l has columns 4 l .. 4 l + 3.
__device__ inline bool quantize_group(const Quantized& out, int row, int group, const float (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  float own[4];
  for (int t = 0; t < 4; ++t) {
    const int from = group_column(lane, t) / 4;
    float got[4];
    for (int i = 0; i < 4; ++i) got[i] = __shfl_sync(kAllLanes, x[i], from);
    const int i = lane & 3;  // the column modulo 4
    own[t] = i == 0 ? got[0] : i == 1 ? got[1] : i == 2 ? got[2] : got[3];
  }
  return quantize_lanes(out, row, group, own);
}

}  // namespace niwaki::cuda
