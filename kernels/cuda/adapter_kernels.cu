#include <algorithm>

#include "cuda/adapter_kernels.h"
#include "cuda/primitives.h"

namespace niwaki::cuda {
namespace {

/// Columns that a warp sums before its lanes are added. A row's t is the sum of its chunks, ascending,
/// however they are shared among warps.
constexpr int kChunk = 512;
/// Columns of A that lie together: a lane's, of one rank.
constexpr int kLaneColumns = 8;
constexpr int kLaneRuns = kChunk / (32 * kLaneColumns);
/// Ranks of A that a warp takes, as they lie together.
constexpr int kRanks = 4;
/// Ranks of B that a thread asks for at once.
constexpr int kStepRanks = 16;
/// Rows of A and B are padded to a multiple of so many values.
constexpr int kPadding = 16;
/// With at most so many rows chunks are shared among warps.
constexpr int kSplitRows = 64;
/// At most so many rows are taken one by one, by blocks of one warp.
constexpr int kFewRows = 2;

__host__ __device__ constexpr int up(int count, int multiple) {
  return (count + multiple - 1) / multiple;
}

template <AdapterType kType>
struct Values;
template <>
struct Values<AdapterType::kF16> {
  using Eight = uint4;
  using Pair = uint32_t;
  static constexpr int bytes = 2;
};
template <>
struct Values<AdapterType::kI8> {
  using Eight = uint2;
  using Pair = uint16_t;
  static constexpr int bytes = 1;
};

__device__ inline float2 widen(uint32_t halves) {
  return {__half2float(__ushort_as_half(static_cast<unsigned short>(halves & 0xffff))),
          __half2float(__ushort_as_half(static_cast<unsigned short>(halves >> 16)))};
}
__device__ inline float2 widen(uint16_t integers) {
  return {static_cast<float>(static_cast<int8_t>(integers & 0xff)),
          static_cast<float>(static_cast<int8_t>(integers >> 8))};
}
__device__ inline void widen(const uint4& halves, float (&to)[8]) {
  const uint32_t words[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = widen(words[i]);
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}
__device__ inline void widen(const uint2& integers, float (&to)[8]) {
  const uint32_t words[2] = {integers.x, integers.y};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    to[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> 8 * (i % 4) & 0xff));
}

/// Columns `column` .. `column` + 7 of a row, zeros from `columns` on.
__device__ inline void load_columns(const float* row, int column, int columns, float (&to)[8]) {
  const float* from = row + column;
  if (column + kLaneColumns <= columns && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) to[i] = column + i < columns ? from[i] : 0.0f;
  }
}

/// Two neighbors, of which the first `count` are there.
__device__ inline float2 load_pair(const float* from, int count) {
  if (count == 2 && reinterpret_cast<uintptr_t>(from) % 8 == 0) return *reinterpret_cast<const float2*>(from);
  return {count > 0 ? from[0] : 0.0f, count > 1 ? from[1] : 0.0f};
}
__device__ inline void store_pair(float2 pair, float* to, int count) {
  if (count == 2 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<float2*>(to) = pair;
    return;
  }
  if (count > 0) to[0] = pair.x;
  if (count > 1) to[1] = pair.y;
}

/// Each of kCount <= 32 values summed over the lanes of a warp, as a tree: 16, 8, 4, 2, 1 lanes apart. A lane
/// gets the sum of value lane / (32 / kCount), by halving what it is responsible for at every level.
template <int kCount, int kDistance = 16>
__device__ inline float sum_lanes(const float (&values)[kCount]) {
  if constexpr (kDistance == 0) {
    return values[0];
  } else if constexpr (kCount == 1) {
    const float sum[1] = {values[0] + __shfl_xor_sync(~0u, values[0], kDistance)};
    return sum_lanes<1, kDistance / 2>(sum);
  } else {
    const bool upper = (threadIdx.x & kDistance) != 0;
    float kept[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float low = values[i], high = values[i + kCount / 2];
      kept[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, kDistance);
    }
    return sum_lanes<kCount / 2, kDistance / 2>(kept);
  }
}

/// A step's lists as a kernel reads them.
struct StepLists {
  AdapterStep::Items items;
  const AdapterItem* item;
  const int32_t* rows;
  const AdapterUse* uses;

  __device__ StepLists(const uint8_t* packed, bool per_output) {
    const AdapterStep& step = *reinterpret_cast<const AdapterStep*>(packed);
    items = per_output ? step.of_outputs : step.of_rows;
    item = reinterpret_cast<const AdapterItem*>(packed + sizeof(AdapterStep)) + items.first;
    rows = reinterpret_cast<const int32_t*>(packed + step.rows_at);
    uses = reinterpret_cast<const AdapterUse*>(packed + step.uses_at);
  }
};

__device__ inline float* entry_of(const AdapterOp& op, int entry, int tensor, int planes) {
  return op.t + (static_cast<int64_t>(entry) * op.tensor_count + tensor) * planes * op.ranks;
}

/// A warp: four ranks of one tensor, some chunks of columns, kRows rows at a time.
///   grid: x: ranks by the warps of a block; y: [tensor][plane]; z: items, in turn
template <AdapterType kType, int kRows>
__global__ void __launch_bounds__(128, 3) project(const __grid_constant__ AdapterOp op, const uint8_t* packed,
                                                  int planes, const float* x, int64_t x_stride) {
  using Eight = typename Values<kType>::Eight;
  constexpr int kCount = kRows * kRanks;
  start_successor();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first_rank = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32) * kRanks;
  const int which = static_cast<int>(blockIdx.y) / planes, plane = static_cast<int>(blockIdx.y) % planes;
  const AdapterOp::Tensor& tensor = op.tensors[which];
  const int begin = planes > 1 ? plane : 0, end = planes > 1 ? plane + 1 : up(op.columns, kChunk);
  const int padded = up(op.columns, kPadding) * kPadding;
  const StepLists step(packed, op.per_output);
  bool waited = false;
  const int items = tensor.target < 0 ? 0 : step.items.adapted;
  for (int i = static_cast<int>(blockIdx.z); i < items; i += static_cast<int>(gridDim.z)) {
    const AdapterItem item = step.item[i];
    for (int j = 0; j < item.uses; ++j) {
      const int slot = step.uses[item.first_use + j].slot;
      if (first_rank >= op.states[slot * op.targets + tensor.target].rank) continue;
      const uint8_t* a = op.slots + slot * op.slot_bytes + tensor.a +
                         static_cast<size_t>(first_rank) * padded * Values<kType>::bytes;
      for (int first = 0; first < item.rows; first += kRows) {
        int32_t rows[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          rows[r] = first + r < item.rows ? step.rows[item.first_row + first + r] : -1;
        float total = 0;
        for (int chunk = begin; chunk < end; ++chunk) {
          // A does not depend on what runs before.
          Eight bits[kLaneRuns][kRanks];
#pragma unroll
          for (int run = 0; run < kLaneRuns; ++run) {
            const int column = chunk * kChunk + (run * 32 + lane) * kLaneColumns;
            const uint8_t* from =
                a + (column / kPadding * kRanks * kPadding + column % kPadding) * Values<kType>::bytes;
#pragma unroll
            for (int k = 0; k < kRanks; ++k) {
              bits[run][k] = column < padded
                                 ? *reinterpret_cast<const Eight*>(from + k * kPadding * Values<kType>::bytes)
                                 : Eight{};
            }
          }
          if (!waited) wait_for_predecessor();
          waited = true;
          float sums[kCount] = {};
#pragma unroll
          for (int run = 0; run < kLaneRuns; ++run) {
            float weights[kRanks][kLaneColumns];
#pragma unroll
            for (int k = 0; k < kRanks; ++k) widen(bits[run][k], weights[k]);
            const int column = chunk * kChunk + (run * 32 + lane) * kLaneColumns;
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              if (rows[r] < 0) continue;
              float values[kLaneColumns];
              load_columns(x + rows[r] * x_stride, column, op.columns, values);
#pragma unroll
              for (int k = 0; k < kRanks; ++k) {
#pragma unroll
                for (int c = 0; c < kLaneColumns; ++c)
                  sums[r * kRanks + k] = fmaf(weights[k][c], values[c], sums[r * kRanks + k]);
              }
            }
          }
          const float sum = sum_lanes(sums);
          total = chunk == begin ? sum : total + sum;
        }
        const int value = lane / (32 / kCount), row = first + value / kRanks,
                  rank = first_rank + value % kRanks;
        if (lane % (32 / kCount) == 0 && row < item.rows)
          entry_of(op, item.first_entry + row * item.uses + j, which, planes)[plane * op.ranks + rank] =
              total;
      }
    }
  }
  if (!waited) wait_for_predecessor();
}

/// A thread: two rows of one tensor, kRows rows of the step at a time.
///   grid: x: blocks of all tensors, one after another; y: items, in turn
template <AdapterType kType, int kRows>
__global__ void add(const __grid_constant__ AdapterOp op, const uint8_t* packed, int planes, const float* y,
                    int64_t y_stride, float* out, int64_t out_stride, bool accumulate) {
  using Pair = typename Values<kType>::Pair;
  __shared__ __align__(16) float t[kRows][kStepRanks];
  start_successor();
  const int block_rows = static_cast<int>(2 * blockDim.x);
  int which = 0, block = static_cast<int>(blockIdx.x);
  while (block >= up(op.tensors[which].rows, block_rows)) block -= up(op.tensors[which++].rows, block_rows);
  const AdapterOp::Tensor& tensor = op.tensors[which];
  const int n = block * block_rows + static_cast<int>(2 * threadIdx.x);
  const int count = max(0, min(2, tensor.rows - n));  // of the two rows
  const int at = count > 0 ? n : 0;
  const float* own_y = y + tensor.first_row + at;
  float* own_out = out + tensor.first_row + at;

  const StepLists step(packed, op.per_output);
  bool waited = false;
  const int items = accumulate ? step.items.all : tensor.target < 0 ? 0 : step.items.adapted;
  for (int i = static_cast<int>(blockIdx.y); i < items; i += static_cast<int>(gridDim.y)) {
    const AdapterItem item = step.item[i];
    const int32_t* rows = step.rows + item.first_row;
    for (int first = 0; first < item.rows; first += kRows) {
      float2 bases[kRows] = {}, sums[kRows] = {};
      bool loaded = false;
      const auto load_bases = [&] {
        if (!waited) wait_for_predecessor();
        waited = true;
        if (loaded) return;
        loaded = true;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (first + r < item.rows)
            bases[r] = sums[r] = load_pair(own_y + rows[first + r] * y_stride, count);
        }
      };
      for (int j = 0; j < item.uses && tensor.target >= 0; ++j) {
        const AdapterUse use = step.uses[item.first_use + j];
        const AdapterState state = op.states[use.slot * op.targets + tensor.target];
        if (state.rank == 0) continue;
        const uint8_t* slot = op.slots + use.slot * op.slot_bytes;
        const uint8_t* b = slot + tensor.b +
                           (static_cast<size_t>(at / kPadding) * state.rank * kPadding + at % kPadding) *
                               Values<kType>::bytes;
        const auto* rank_scale = reinterpret_cast<const float*>(slot + tensor.rank_scale);
        float2 z[kRows] = {};
        for (int k0 = 0; k0 < state.rank; k0 += kStepRanks) {
          // B does not depend on what runs before.
          Pair bits[kStepRanks];
#pragma unroll
          for (int k = 0; k < kStepRanks; ++k) {
            const size_t from = static_cast<size_t>(k0 + k) * kPadding * Values<kType>::bytes;
            bits[k] = k0 + k < state.rank ? *reinterpret_cast<const Pair*>(b + from) : Pair{0};
          }
          load_bases();
          __syncthreads();
          for (int s = static_cast<int>(threadIdx.x); s < kRows * kStepRanks;
               s += static_cast<int>(blockDim.x)) {
            const int r = s / kStepRanks, k = s % kStepRanks, row = first + r;
            float sum = 0;
            if (row < item.rows && k0 + k < state.rank) {
              const float* from =
                  entry_of(op, item.first_entry + row * item.uses + j, which, planes) + k0 + k;
              sum = from[0];
#pragma unroll 8
              for (int plane = 1; plane < planes; ++plane) sum += from[plane * op.ranks];
              sum *= rank_scale[k0 + k];
            }
            t[r][k] = sum;
          }
          __syncthreads();
#pragma unroll
          for (int k = 0; k < kStepRanks; k += 4) {
            const float2 w[4] = {widen(bits[k]), widen(bits[k + 1]), widen(bits[k + 2]), widen(bits[k + 3])};
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
              const float4 four = *reinterpret_cast<const float4*>(&t[r][k]);
              const float ts[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
              for (int q = 0; q < 4; ++q) {
                z[r].x = fmaf(w[q].x, ts[q], z[r].x);
                z[r].y = fmaf(w[q].y, ts[q], z[r].y);
              }
            }
          }
        }
        if (state.scales_rows == 0) {
          const float factor = use.weight * state.scale;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[r].x = fmaf(factor, z[r].x, sums[r].x);
            sums[r].y = fmaf(factor, z[r].y, sums[r].y);
          }
        } else {
          const float2 f = *reinterpret_cast<const float2*>(slot + tensor.row_scale + at * sizeof(float));
          const float2 change = {f.x - 1, f.y - 1}, factor = {f.x * state.scale, f.y * state.scale};
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[r].x = fmaf(use.weight, fmaf(change.x, bases[r].x, factor.x * z[r].x), sums[r].x);
            sums[r].y = fmaf(use.weight, fmaf(change.y, bases[r].y, factor.y * z[r].y), sums[r].y);
          }
        }
      }
      load_bases();
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first + r >= item.rows) continue;
        float* to = own_out + rows[first + r] * out_stride;
        float2 sum = sums[r];
        if (accumulate) {
          const float2 old = load_pair(to, count);
          sum = {old.x + sum.x, old.y + sum.y};
        }
        store_pair(sum, to, count);
      }
    }
  }
  if (!waited) wait_for_predecessor();
}

/// Planes of t for a launch of so many rows.
int planes_for(int32_t rows, int columns) {
  return rows <= kSplitRows ? up(columns, kChunk) : 1;
}

/// Blocks that take the items of a launch in turn: one for each row as long as rows may all have mixes of
/// their own.
unsigned item_blocks(int32_t rows) {
  return static_cast<unsigned>(std::min(rows, std::max(32, up(rows, kItemRows))));
}

template <AdapterType kType, int kRows>
void launch_project_of(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* x,
                       int64_t x_stride, cudaStream_t stream) {
  const int tiles = op.ranks / kRanks, warps = rows <= kFewRows ? 1 : std::min(tiles, 4);
  const int planes = planes_for(rows, op.columns);
  const LaunchShape shape{dim3(static_cast<unsigned>(up(tiles, warps)),
                               static_cast<unsigned>(op.tensor_count * planes), item_blocks(rows)),
                          dim3(static_cast<unsigned>(32 * warps)), 0, true};
  launch(project<kType, kRows>, shape, stream, op, step, planes, x, x_stride);
}

template <AdapterType kType, int kRows>
void launch_add_of(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* y, int64_t y_stride,
                   float* out, int64_t out_stride, bool accumulate, cudaStream_t stream) {
  const int threads = rows <= kFewRows ? 32 : 128;
  int blocks = 0;
  for (int i = 0; i < op.tensor_count; ++i) blocks += up(op.tensors[i].rows, 2 * threads);
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks), item_blocks(rows)),
                          dim3(static_cast<unsigned>(threads)), 0, true};
  launch(add<kType, kRows>, shape, stream, op, step, planes_for(rows, op.columns), y, y_stride, out,
         out_stride, accumulate);
}

/// Calls f with the type and the rows of a kernel's instance.
template <class F>
void with_instance(const AdapterOp& op, int32_t rows, F&& f) {
  const bool few = rows <= kFewRows;
  if (op.type == AdapterType::kF16) {
    few ? f.template operator()<AdapterType::kF16, 1>()
        : f.template operator()<AdapterType::kF16, kItemRows>();
  } else {
    few ? f.template operator()<AdapterType::kI8, 1>() : f.template operator()<AdapterType::kI8, kItemRows>();
  }
}

}  // namespace

size_t adapter_floats(const AdapterOp& op, int32_t max_rows) {
  const auto of_rows = [&](int32_t rows) {
    return static_cast<size_t>(rows) * kMaxMix * static_cast<size_t>(op.tensor_count) *
           static_cast<size_t>(planes_for(rows, op.columns)) * static_cast<size_t>(op.ranks);
  };
  return std::max(of_rows(max_rows), of_rows(std::min(max_rows, kSplitRows)));
}

void launch_project(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* x, int64_t x_stride,
                    cudaStream_t stream) {
  with_instance(op, rows, [&]<AdapterType kType, int kRows>() {
    launch_project_of<kType, kRows>(op, rows, step, x, x_stride, stream);
  });
}

void launch_add(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* y, int64_t y_stride,
                float* out, int64_t out_stride, bool accumulate, cudaStream_t stream) {
  with_instance(op, rows, [&]<AdapterType kType, int kRows>() {
    launch_add_of<kType, kRows>(op, rows, step, y, y_stride, out, out_stride, accumulate, stream);
  });
}

}  // namespace niwaki::cuda
