#include "cuda/head_lanes.h"
#include "cuda/heads.h"
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

using Head = HeadLanes<2>;

__device__ bool store_head(Head& head, const StepView& step, const KvPages& pages, int row, int kv_head,
                           bool key) {
  const int position = step.positions[row];
  const int block = step.tables[step.table_begins[step.sequences[row]] + position / pages.block_size];
  return head.store_page(pages, block, position, kv_head, key);
}

/// A warp does a head of a row: of q (if normed), k or v (if stored).
template <bool kNorm, bool kStore>
__global__ void __launch_bounds__(kThreads)
    prepare_heads(StepView step, HeadRows rows, HeadNorm norm, HeadStore store) {
  const QkvLayout& l = rows.layout;
  const int first = kNorm ? 0 : l.heads,
            count = (kStore ? l.heads + 2 * l.kv_heads : l.heads + l.kv_heads) - first;
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
    if (!store_head(numbers, step, store.pages, row, kv_head, !value) && first_lane)
      report_bad(step, store.op, row);
  }
}

void require_head_dim(int32_t head_dim) {
  if (head_dim <= 0 || head_dim > 256 || head_dim % 16 != 0) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: head_dim must be a multiple of 16 up to 256, got " + std::to_string(head_dim));
  }
}

template <bool kNorm, bool kStore>
void launch_heads(const StepView& step, const HeadRows& heads, const HeadNorm& norm, const HeadStore& store,
                  int32_t rows, cudaStream_t stream) {
  const QkvLayout& l = heads.layout;
  require_head_dim(l.head_dim);
  const int32_t count = (kNorm ? l.heads + l.kv_heads : l.kv_heads) + (kStore ? l.kv_heads : 0);
  const auto blocks = static_cast<unsigned>((static_cast<int64_t>(rows) * count + kWarps - 1) / kWarps);
  launch(prepare_heads<kNorm, kStore>, {dim3(blocks), dim3(kThreads), 0, true}, stream, step, heads, norm,
         store);
}

}  // namespace

void launch_rope_table(const StepView& step, const RopeTable& table, int32_t rows, cudaStream_t stream) {
  const auto threads = static_cast<int64_t>(rows) * (table.head_dim / 2);
  launch(fill_rope_table,
         {dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), 0, true}, stream,
         step, table);
}

void launch_norm(const StepView& step, const HeadRows& heads, const HeadNorm& norm, int32_t rows,
                 cudaStream_t stream) {
  launch_heads<true, false>(step, heads, norm, {}, rows, stream);
}

void launch_store(const StepView& step, const HeadRows& heads, const HeadStore& store, int32_t rows,
                  cudaStream_t stream) {
  launch_heads<false, true>(step, heads, {}, store, rows, stream);
}

void launch_norm_store(const StepView& step, const HeadRows& heads, const HeadNorm& norm,
                       const HeadStore& store, int32_t rows, cudaStream_t stream) {
  launch_heads<true, true>(step, heads, norm, store, rows, stream);
}

}  // namespace niwaki::cuda
