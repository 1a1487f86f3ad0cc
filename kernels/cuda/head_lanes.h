#pragma once
// A head of q, k or v in the lanes of a warp: its norm, its rotation, and its store into a page.
#include <cstddef>
#include <cstdint>

#include "cuda/kv_cache.h"
#include "cuda/warp.h"

namespace niwaki::cuda {

/// Lane l has pairs of dimensions from 2 l + 64 j on, and those half of head_dim further, zeros from there
/// on. kParts: 1 for a head_dim of at most 128, else 2.
template <int kParts>
struct HeadLanes {
  static constexpr int kCount = kParts;
  float2 low[kParts], high[kParts];

  template <class F>  // (dimension, pair of numbers)
  __device__ void each(int half, F&& f) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const int i = static_cast<int>(threadIdx.x % 32) * 2 + 64 * j;
      if (i >= half) continue;
      f(i, low[j]);
      f(half + i, high[j]);
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < kParts; ++j) low[j] = high[j] = {0, 0};
  }
  __device__ void load(const float* from, int half) {
    clear();
    each(half, [&](int i, float2& x) { x = *reinterpret_cast<const float2*>(from + i); });
  }
  /// What the kernels before this one wrote, whatever was read there before they ended.
  __device__ void load_now(const float* from, int half) {
    clear();
    each(half, [&](int i, float2& x) { x = __ldcg(reinterpret_cast<const float2*>(from + i)); });
  }
  __device__ void store(float* to, int half) {
    each(half, [&](int i, float2& x) { *reinterpret_cast<float2*>(to + i) = x; });
  }

  /// False, in all lanes, if the sum of the squares is not finite.
  __device__ bool norm(const HeadLanes& weight, float eps, int half) {
    float squares = 0;
    each(half, [&](int, float2& x) { squares = fmaf(x.y, x.y, fmaf(x.x, x.x, squares)); });
    squares = warp_sum(squares);
    const float inverse = rsqrtf(fmaf(squares, 1.0f / static_cast<float>(2 * half), eps));
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      low[j] = {low[j].x * inverse * weight.low[j].x, low[j].y * inverse * weight.low[j].y};
      high[j] = {high[j].x * inverse * weight.high[j].x, high[j].y * inverse * weight.high[j].y};
    }
    return squares - squares == 0;
  }

  /// `angles`: cosines in the low half, sines in the high one.
  __device__ void turn(const HeadLanes& angles) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const float2 x = low[j], y = high[j], cosine = angles.low[j], sine = angles.high[j];
      low[j] = {fmaf(x.x, cosine.x, -(y.x * sine.x)), fmaf(x.y, cosine.y, -(y.y * sine.y))};
      high[j] = {fmaf(y.x, cosine.x, x.x * sine.x), fmaf(y.y, cosine.y, x.y * sine.y)};
    }
  }

  // Into a page. What it then holds is left in the lanes. False, in all lanes, if it is not finite as
  // float16.

  __device__ bool store_halves(int half, int slot, unsigned char* page) {
    bool fits = true;
    unsigned char* row = page + static_cast<size_t>(slot) * (4 * half);
    each(half, [&](int i, float2& x) {
      fits = fits && fits_half(x.x) && fits_half(x.y);
      *reinterpret_cast<uint32_t*>(row + place_chunk(slot, i / 8, 2 * half) * 16 + i % 8 * 2) =
          pack_halves(x.x, x.y);
    });
    return __all_sync(kAllLanes, fits);
  }

  /// As integers; the scale is chosen as in cpu/kv_store_impl.h. Stores nothing if a number is not finite.
  __device__ bool store_integers(int half, int slot, int block_size, unsigned char* page) {
    constexpr int kScales = 8;
    constexpr float kShift = 0x1.8p23f;
    bool finite = true;
    float top = 0;
    each(half, [&](int, float2& x) {
      finite = finite && x.x - x.x == 0 && x.y - x.y == 0;
      top = fmaxf(top, fmaxf(fabsf(x.x), fabsf(x.y)));
    });
    if (!__all_sync(kAllLanes, finite)) return false;
    top = warp_max(top);
    // Errors are in units of the largest, so that no square leaves the range of a float.
    const float unit = 1 / top;
    float errors[kScales], sizes[kScales], steps[kScales];
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const float levels = 127.4f - 0.4f * static_cast<float>(i), size = top * (1 / levels);
      float error = 0;
      sizes[i] = size;
      steps[i] = levels * unit;
      each(half, [&](int, float2& x) {
        const auto off = [&](float v) { return fmaf(-(fmaf(v, steps[i], kShift) - kShift), size, v) * unit; };
        const float first = off(x.x), second = off(x.y);
        error = fmaf(second, second, fmaf(first, first, error));
      });
      errors[i] = error;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {  // warp_sum of all
#pragma unroll
      for (float& error : errors) error += __shfl_xor_sync(kAllLanes, error, distance);
    }
    float inverse = 0, best = 0, least = INFINITY;
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      if (top < 0x1p-119f || errors[i] >= least) continue;
      least = errors[i];
      best = sizes[i];
      inverse = steps[i];
    }
    unsigned char* row = page + static_cast<size_t>(slot) * (2 * half);
    each(half, [&](int i, float2& x) {
      const auto integer = [&](float v) {
        return static_cast<signed char>(fmaf(v, inverse, kShift) - kShift);
      };
      const char2 integers = {integer(x.x), integer(x.y)};
      *reinterpret_cast<char2*>(row + i) = integers;
      x = {static_cast<float>(integers.x) * best, static_cast<float>(integers.y) * best};
    });
    if (threadIdx.x % 32 == 0)
      reinterpret_cast<float*>(page + static_cast<size_t>(block_size) * (2 * half))[slot] = best;
    return fits_half((fmaf(top, inverse, kShift) - kShift) * best);
  }

  /// Of the key or value of a position; `block` is the one that has it.
  __device__ bool store_page(const KvPages& pages, int block, int position, int kv_head, bool key) {
    const int slot = position % pages.block_size, half = pages.head_dim / 2;
    unsigned char* page = key ? pages.keys(block, kv_head) : pages.values(block, kv_head);
    return pages.type == KvType::kQ8 ? store_integers(half, slot, pages.block_size, page)
                                     : store_halves(half, slot, page);
  }
};

}  // namespace niwaki::cuda
