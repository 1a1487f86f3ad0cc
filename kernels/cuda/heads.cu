#include "cuda/heads.h"

#include "cuda/warp.h"
#include "niwaki/error.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__global__ void fill_rope_table(StepView step, RopeTable table) {
  start_successor();
  wait_for_predecessor();
  const int half = table.head_dim / 2, index = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int row = index / half, i = index % half;
  if (row >= step.counts->rows) return;
  double sine, cosine;
  sincos(step.positions[row] * table.frequencies[i], &sine, &cosine);
  float* out = table.out + row * table.stride;
  out[i] = static_cast<float>(cosine * table.factor);
  out[half + i] = static_cast<float>(sine * table.factor);
}

/// A head in a warp: lane l has pairs of dimensions from 2 l + 64 j on, and those half of head_dim further, zeros from there on.
struct Head {
  static constexpr int kParts = 2;
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

  __device__ void load(const float* from, int half) {
    for (int j = 0; j < kParts; ++j) low[j] = high[j] = {0, 0};
    each(half, [&](int i, float2& x) { x = *reinterpret_cast<const float2*>(from + i); });
  }
  __device__ void store(float* to, int half) {
    each(half, [&](int i, float2& x) { *reinterpret_cast<float2*>(to + i) = x; });
  }

  /// False, in all lanes, if the sum of the squares is not finite.
  __device__ bool norm(const Head& weight, float eps, int half) {
    float squares = 0;
    each(half, [&](int, float2& x) { squares = fmaf(x.y, x.y, fmaf(x.x, x.x, squares)); });
    squares = warp_sum(squares);
    const float inverse = 1.0f / sqrtf(squares / static_cast<float>(2 * half) + eps);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      low[j] = {low[j].x * inverse * weight.low[j].x, low[j].y * inverse * weight.low[j].y};
      high[j] = {high[j].x * inverse * weight.high[j].x, high[j].y * inverse * weight.high[j].y};
    }
    return squares - squares == 0;
  }

  /// `angles`: cosines in the low half, sines in the high one.
  __device__ void turn(const Head& angles) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const float2 x = low[j], y = high[j], cosine = angles.low[j], sine = angles.high[j];
      low[j] = {fmaf(x.x, cosine.x, -(y.x * sine.x)), fmaf(x.y, cosine.y, -(y.y * sine.y))};
      high[j] = {fmaf(y.x, cosine.x, x.x * sine.x), fmaf(y.y, cosine.y, x.y * sine.y)};
    }
  }
};

/// As float16; false, in all lanes, if a number is not finite as such.
__device__ bool store_halves(Head& head, int half, int slot, unsigned char* page) {
  bool fits = true;
  unsigned char* row = page + static_cast<size_t>(slot) * (4 * half);
  head.each(half, [&](int i, float2& x) {
    fits = fits && fits_half(x.x) && fits_half(x.y);
    *reinterpret_cast<uint32_t*>(row + place_chunk(slot, i / 8, 2 * half) * 16 + i % 8 * 2) = pack_halves(x.x, x.y);
  });
  return __all_sync(kAllLanes, fits);
}

/// As integers; the scale is chosen as in cpu/kv_store_impl.h. False, in all lanes, if a number is not finite, or not as float16
/// once it is widened.
__device__ bool store_integers(Head& head, int half, int slot, int block_size, unsigned char* page) {
  constexpr int kScales = 8;
  constexpr float kShift = 0x1.8p23f;
  bool finite = true;
  float top = 0;
  head.each(half, [&](int, float2& x) {
    finite = finite && x.x - x.x == 0 && x.y - x.y == 0;
    top = fmaxf(top, fmaxf(fabsf(x.x), fabsf(x.y)));
  });
  if (!__all_sync(kAllLanes, finite)) return false;
  top = warp_max(top);
  float inverse = 0, best = 0, least = INFINITY;
  for (int i = 0; i < kScales && top >= 0x1p-119f; ++i) {
    const float levels = 127.4f - 0.4f * static_cast<float>(i), size = top / levels, steps = levels / top;
    const float unit = 1 / top;  // errors are in units of the largest, so that no square leaves the range of a float
    float error = 0;
    head.each(half, [&](int, float2& x) {
      const auto off = [&](float v) { return fmaf(-(fmaf(v, steps, kShift) - kShift), size, v) * unit; };
      const float first = off(x.x), second = off(x.y);
      error = fmaf(second, second, fmaf(first, first, error));
    });
    const float total = warp_sum(error);
    if (total < least) {
      least = total;
      best = size;
      inverse = steps;
    }
  }
  unsigned char* row = page + static_cast<size_t>(slot) * (2 * half);
  head.each(half, [&](int i, float2& x) {
    const auto integer = [&](float v) { return static_cast<signed char>(fmaf(v, inverse, kShift) - kShift); };
    *reinterpret_cast<char2*>(row + i) = {integer(x.x), integer(x.y)};
  });
  if (threadIdx.x % 32 == 0)
    reinterpret_cast<float*>(page + static_cast<size_t>(block_size) * (2 * half))[slot] = best;
  return fits_half((fmaf(top, inverse, kShift) - kShift) * best);
}

__device__ bool store_head(Head& head, const StepView& step, const KvPages& pages, int row, int kv_head, bool keys) {
  const int position = step.positions[row], half = pages.head_dim / 2, slot = position % pages.block_size;
  const int block = step.tables[step.table_begins[step.sequences[row]] + position / pages.block_size];
  unsigned char* page = keys ? pages.keys(block, kv_head) : pages.values(block, kv_head);
  return pages.type == KvType::kQ8 ? store_integers(head, half, slot, pages.block_size, page)
                                   : store_halves(head, half, slot, page);
}

/// A warp does a head of a row: of q (if normed), k or v (if stored).
template <bool kNorm, bool kStore>
__global__ void __launch_bounds__(kThreads) prepare_heads(StepView step, HeadRows rows, HeadNorm norm, HeadStore store) {
  const QkvLayout& l = rows.layout;
  const int first = kNorm ? 0 : l.heads, count = (kStore ? l.heads + 2 * l.kv_heads : l.heads + l.kv_heads) - first;
  const int index = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32), half = l.head_dim / 2;
  const int row = index / count, head = first + index % count;
  const bool query = head < l.heads, value = head >= l.heads + l.kv_heads, normed = kNorm && !value;
  Head weight;
  if (normed) weight.load(query ? norm.q_norm : norm.k_norm, half);
  start_successor();
  wait_for_predecessor();
  if (row >= step.counts->rows) return;

  float* at = rows.qkv + row * rows.stride + static_cast<int64_t>(head) * l.head_dim;
  const bool first_lane = threadIdx.x % 32 == 0;
  Head numbers;
  numbers.load(at, half);
  if (normed) {
    Head angles;
    angles.load(norm.rope + row * norm.rope_stride, half);
    if (!numbers.norm(weight, norm.eps, half) && first_lane) report_bad(step, norm.op, row);
    numbers.turn(angles);
    if (query || !kStore) numbers.store(at, half);
  }
  if (kStore && !query) {
    const int kv_head = value ? head - l.heads - l.kv_heads : head - l.heads;
    if (!store_head(numbers, step, store.pages, row, kv_head, !value) && first_lane) report_bad(step, store.op, row);
  }
}

void require_head_dim(int32_t head_dim) {
  if (head_dim <= 0 || head_dim > 128 * Head::kParts || head_dim % 16 != 0) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: head_dim must be a multiple of 16 up to 256, got " + std::to_string(head_dim));
  }
}

template <bool kNorm, bool kStore>
void launch_heads(const StepView& step, const HeadRows& heads, const HeadNorm& norm, const HeadStore& store, int32_t rows,
                  cudaStream_t stream) {
  const QkvLayout& l = heads.layout;
  require_head_dim(l.head_dim);
  const int32_t count = (kNorm ? l.heads + l.kv_heads : l.kv_heads) + (kStore ? l.kv_heads : 0);
  const auto blocks = static_cast<unsigned>((static_cast<int64_t>(rows) * count + kWarps - 1) / kWarps);
  launch(prepare_heads<kNorm, kStore>, {dim3(blocks), dim3(kThreads), 0, true}, stream, step, heads, norm, store);
}

}  // namespace

void launch_rope_table(const StepView& step, const RopeTable& table, int32_t rows, cudaStream_t stream) {
  const auto threads = static_cast<int64_t>(rows) * (table.head_dim / 2);
  launch(fill_rope_table, {dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0, true},
         stream, step, table);
}

void launch_norm(const StepView& step, const HeadRows& heads, const HeadNorm& norm, int32_t rows, cudaStream_t stream) {
  launch_heads<true, false>(step, heads, norm, {}, rows, stream);
}

void launch_store(const StepView& step, const HeadRows& heads, const HeadStore& store, int32_t rows,
                  cudaStream_t stream) {
  launch_heads<false, true>(step, heads, {}, store, rows, stream);
}

void launch_norm_store(const StepView& step, const HeadRows& heads, const HeadNorm& norm, const HeadStore& store,
                       int32_t rows, cudaStream_t stream) {
  launch_heads<true, true>(step, heads, norm, store, rows, stream);
}

}  // namespace niwaki::cuda
