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
///   kBits1   [group][row] of PlanesRecord<1>: bit `lane` of word t of plane p is bit p of q (two's
///   complement)
///
///   kBits2   [half group][row] of PlanesRecord<2>: see pack_bits2
///
///   kHalves  [group][8 rows][16 cores][row][8 halves]: q as float16, for wgmma; scales and sums lie apart
enum class QuantizedLayout : int32_t { kBits1, kBits2, kHalves };

/// Words of a row's slice: [planes][4], the scale, the sum of the integers; whole 16 bytes.
template <int Bits>
struct PlanesRecord {
  static constexpr int kPlanes = Bits == 1 ? 10 : 11;
  static constexpr int kScale = 4 * kPlanes, kSum = kScale + 1, kWords = (kSum + 4) / 4 * 4;
};

struct Quantized {
  QuantizedLayout layout;
  int32_t rows;  // that there is room for; kHalves: a multiple of 8
  uint8_t* data;
  // Of kHalves.
  float* scales;  // [group][rows]
  int32_t* sums;  // [group][2][rows]: of the integers of each half group
};

/// Bytes of the three, each a multiple of 256.
struct QuantizedBytes {
  size_t data, scales, sums;
  QuantizedBytes(QuantizedLayout layout, int64_t rows, int64_t columns) {
    const auto groups = static_cast<size_t>((columns + kGroup - 1) / kGroup), r = static_cast<size_t>(rows);
    const bool halves = layout == QuantizedLayout::kHalves;
    const size_t each = halves                              ? kGroup * 2
                        : layout == QuantizedLayout::kBits1 ? PlanesRecord<1>::kWords * 4
                                                            : 2 * PlanesRecord<2>::kWords * 4;
    const auto padded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
    data = padded(groups * r * each);
    scales = halves ? padded(groups * r * sizeof(float)) : 0;
    sums = halves ? padded(groups * r * 2 * sizeof(int32_t)) : 0;
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
  for (int plane = 0; plane < PlanesRecord<2>::kPlanes; ++plane) {
    const int p = min(plane, PlanesRecord<1>::kPlanes - 1);  // the sign, once more
    uint32_t mine = 0;
    for (int t = 0; t < 4; ++t) {
      const uint32_t bits = __ballot_sync(kAllLanes, q[t] >> p & 1) >> 8 * half;
      if (t == word) mine = (bits & 0xff) | (bits >> 8 & 0xff00);
    }
    if (lane < 8) {
      const size_t at =
          (static_cast<size_t>(2 * group + half) * static_cast<size_t>(out.rows) + static_cast<size_t>(row)) *
          PlanesRecord<2>::kWords;
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
  auto* words = reinterpret_cast<uint32_t*>(out.data) +
                (static_cast<size_t>(group) * static_cast<size_t>(out.rows) + static_cast<size_t>(row)) *
                    PlanesRecord<1>::kWords;
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

__device__ inline void store_scale(const Quantized& out, int row, int group, float scale) {
  const auto rows = static_cast<size_t>(out.rows), r = static_cast<size_t>(row),
             g = static_cast<size_t>(group);
  auto* records = reinterpret_cast<float*>(out.data);
  if (out.layout == QuantizedLayout::kHalves) {
    out.scales[g * rows + r] = scale;
  } else if (out.layout == QuantizedLayout::kBits1) {
    using Record = PlanesRecord<1>;
    records[(g * rows + r) * Record::kWords + Record::kScale] = scale;
  } else {
    using Record = PlanesRecord<2>;
    for (size_t half = 0; half < 2; ++half)
      records[((2 * g + half) * rows + r) * Record::kWords + Record::kScale] = scale;
  }
}
/// Of half a group, or where slices are whole groups `all` with the first.
__device__ inline void store_sum(const Quantized& out, int row, int group, int half, int sum, int all) {
  const auto rows = static_cast<size_t>(out.rows), r = static_cast<size_t>(row),
             g = static_cast<size_t>(group);
  const size_t slice = 2 * g + static_cast<size_t>(half);
  auto* records = reinterpret_cast<int32_t*>(out.data);
  if (out.layout == QuantizedLayout::kHalves) {
    out.sums[slice * rows + r] = sum;
  } else if (out.layout == QuantizedLayout::kBits1) {
    using Record = PlanesRecord<1>;
    if (half == 0) records[(g * rows + r) * Record::kWords + Record::kSum] = all;
  } else {
    using Record = PlanesRecord<2>;
    records[(slice * rows + r) * Record::kWords + Record::kSum] = sum;
  }
}

/// Where a group's integers, rounded, add up to more than this, their scale may be bounded by their sum, not
/// by the largest: see cpu/quantize.h.
constexpr int kManyLarge = 32600;

/// Sum of |x| / 128 over a group, in the order of cpu/quantize.h: sixteen sums of every sixteenth column,
/// then a tree. A lane has the columns of group_column: of sum lane % 8 + lane / 16 * 8, and the later ones
/// if bit 3 is set.
__device__ inline float magnitudes(const float (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  float sum = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float mine = half == 0 ? 0 : __shfl_sync(kAllLanes, sum, lane & ~8);
#pragma unroll
    for (int t = 0; t < 4; ++t) mine += fabsf(x[t]) * 0x1p-7f;
    if ((lane & 8) == 8 * half) sum = mine;
  }
  sum = __shfl_sync(kAllLanes, sum, lane | 8);
  for (const int distance : {16, 4, 2, 1}) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
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
  if (__reduce_add_sync(kAllLanes, magnitude) > kManyLarge) {
    inverse = fminf(inverse, __fdiv_rn(32700.0f / 128.0f, magnitudes(x)));
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
    const float scale = peak > 0 ? __fmul_rn(__frcp_rn(inverse), factor) : 0;
    store_scale(out, row, group, scale);
    store_sum(out, row, group, 0, low, all);
    store_sum(out, row, group, 1, all - low, all);
  }
  return true;
}

/// A group by half a warp: element e of 0..7 of a lane is column half_warp_column(lane, e).
__device__ inline int half_warp_column(int lane, int e) {
  return (lane & 15) * 8 + e;
}
template <class T>
__device__ inline T half_warp_sum(T x) {
  for (int distance = 8; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

/// As magnitudes(): the tree over elements e, e + kStep, ...
template <int kStep = 1>
__device__ inline float half_warp_magnitudes(const float (&x)[8], int e = 0) {
  if constexpr (kStep < 8) {
    return half_warp_magnitudes<2 * kStep>(x, e) + half_warp_magnitudes<2 * kStep>(x, e + kStep);
  } else {
    const int lane = static_cast<int>(threadIdx.x & 31), first = lane & 17;
    float sum = 0;
    for (int k = 0; k < 8; ++k) sum += __shfl_sync(kAllLanes, fabsf(x[e]) * 0x1p-7f, first + 2 * k);
    return sum + __shfl_xor_sync(kAllLanes, sum, 1);
  }
}

/// Byte p of the result is bit p of the bytes of x, in their order.
__device__ inline uint2 transpose_byte_bits(uint2 x) {
  const auto swap = [&](uint32_t mask, int distance) {  // bits of each word, as far apart
    const auto swapped = [&](uint32_t v) {
      const uint32_t t = (v ^ v >> distance) & mask;
      return v ^ t ^ t << distance;
    };
    x = make_uint2(swapped(x.x), swapped(x.y));
  };
  swap(0x00aa00aau, 7);
  swap(0x0000ccccu, 14);
  return make_uint2((x.x & 0x0f0f0f0fu) | (x.y << 4 & 0xf0f0f0f0u),
                    (x.x >> 4 & 0x0f0f0f0fu) | (x.y & 0xf0f0f0f0u));
}

/// Half k of lane j of eight (two halves a register) becomes half j of lane k.
__device__ inline void transpose_halves(uint32_t (&x)[4]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int distance = 4; distance > 1; distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k & distance / 2) continue;
      const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? x[k] : x[k + distance / 2], distance);
      (upper ? x[k] : x[k + distance / 2]) = got;
    }
  }
  const bool odd = (lane & 1) != 0;
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const uint32_t got = __shfl_xor_sync(kAllLanes, __byte_perm(x[k], x[k + 1], odd ? 0x5410 : 0x7632), 1);
    x[k] = __byte_perm(x[k], got, odd ? 0x3254 : 0x5410);
    x[k + 1] = __byte_perm(x[k + 1], got, odd ? 0x3276 : 0x7610);
  }
}

/// By a whole warp: quantize_lanes for two groups, of which each half has one of any row; nothing is stored
/// of a group that is not `there`. Returns false in the lanes of one that is not finite.
__device__ inline bool quantize_half_warp(const Quantized& out, int row, int group, bool there,
                                          const float (&x)[8], float factor = 1) {
  constexpr uint32_t kInfinite = 0x7f800000u;
  constexpr float kShift = 0x1.8p23f;  // see quantize_lanes
  const int j = static_cast<int>(threadIdx.x & 15);
  uint32_t most = 0;
#pragma unroll
  for (float v : x) most = max(most, __float_as_uint(v) & 0x7fffffffu);
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2)
    most = max(most, __shfl_xor_sync(kAllLanes, most, distance));
  const bool finite = most < kInfinite;
  const float peak = finite ? __uint_as_float(most) : 0;
  float inverse = peak > 0 ? fminf(0x1p125f, __fdiv_rn(511.0f, peak)) : 0;
  float q[8], magnitude;
  int sum;  // of a half group
  const auto round = [&] {
    magnitude = 0;
    sum = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      q[e] = __fadd_rn(__fmul_rn(x[e], inverse), kShift);
      magnitude += fabsf(q[e] - kShift);
      sum += static_cast<int>(__float_as_uint(q[e]) - 0x4b400000u);
    }
#pragma unroll
    for (int distance = 4; distance > 0; distance /= 2) {
      magnitude += __shfl_xor_sync(kAllLanes, magnitude, distance);
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    magnitude += __shfl_xor_sync(kAllLanes, magnitude, 8);
  };
  round();
  if (__any_sync(kAllLanes, magnitude > kManyLarge)) {
    const float total = half_warp_magnitudes(x);
    if (magnitude > kManyLarge) inverse = fminf(inverse, __fdiv_rn(32700.0f / 128.0f, total));
    round();
  }

  const auto rows = static_cast<size_t>(out.rows), r = static_cast<size_t>(row),
             g = static_cast<size_t>(group);
  const auto bits = [&](int e) { return __float_as_uint(q[e]); };
  there = there && finite;
  const float scale = peak > 0 ? __fmul_rn(__frcp_rn(inverse), factor) : 0;
  const int all = sum + __shfl_xor_sync(kAllLanes, sum, 8);
  if (there && (j & 7) == 0) store_sum(out, row, group, j >> 3, sum, all);
  if (there && j == 0) store_scale(out, row, group, scale);
  if (out.layout == QuantizedLayout::kHalves) {
    uint32_t halves[4];
#pragma unroll
    for (int e = 0; e < 8; e += 2) halves[e / 2] = pack_halves(q[e] - kShift, q[e + 1] - kShift);
    transpose_halves(halves);  // the lane has core j
    if (there) {
      reinterpret_cast<uint4*>(
          out.data)[((g * (rows / 8) + r / 8) * 16 + static_cast<size_t>(j)) * 8 + r % 8] =
          make_uint4(halves[0], halves[1], halves[2], halves[3]);
    }
  } else {
    // Byte `at` of a word: 0 .. 7 of the planes, and the two bits above.
    const auto bytes = [&](uint32_t at) {
      return make_uint2(
          __byte_perm(__byte_perm(bits(0), bits(1), at), __byte_perm(bits(2), bits(3), at), 0x5410),
          __byte_perm(__byte_perm(bits(4), bits(5), at), __byte_perm(bits(6), bits(7), at), 0x5410));
    };
    const uint2 low = transpose_byte_bits(bytes(0x0040)), top = bytes(0x0051);
    const auto gather = [](uint32_t x) { return (x & 0x01010101u) * 0x01020408u >> 24; };  // 4 bits
    const auto plane = [&](int p) -> uint32_t {
      if (p < 4) return low.x >> 8 * p;
      if (p < 8) return low.y >> 8 * (p - 4);
      return gather(top.x >> (p - 8)) | gather(top.y >> (p - 8)) << 4;
    };
    if (there && out.layout == QuantizedLayout::kBits1) {
      uint8_t* to = out.data + (g * rows + r) * (4 * PlanesRecord<1>::kWords) + (j & 7) * 2 + (j >> 3);
#pragma unroll
      for (int p = 0; p < PlanesRecord<1>::kPlanes; ++p) to[16 * p] = static_cast<uint8_t>(plane(p));
    } else if (there) {
      // See pack_bits2.
      auto* words = reinterpret_cast<unsigned short*>(out.data) +
                    ((2 * g + static_cast<size_t>(j >> 3)) * rows + r) * (2 * PlanesRecord<2>::kWords) +
                    (j & 7);
      uint32_t before = 0;
#pragma unroll
      for (int p = 0; p < PlanesRecord<2>::kPlanes; ++p) {
        uint32_t mine = plane(min(p, PlanesRecord<1>::kPlanes - 1)) & 0xff;
        mine = (mine | mine << 4) & 0x0f0fu;
        mine = (mine | mine << 2) & 0x3333u;
        mine = (mine | mine << 1) & 0x5555u;
        words[8 * p] = static_cast<unsigned short>(mine | before << 1);
        before = mine;
      }
    }
  }
  return finite;
}

}  // namespace niwaki::cuda
