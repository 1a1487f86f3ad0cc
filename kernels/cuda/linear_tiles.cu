// Many rows of the step: weights are expanded to float16 in registers, 64 rows to a warpgroup, and multiplied
// by tiles of rows of the step in shared memory (wgmma). Integers in float16 and their sums in float32 are
// exact.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

/// Shape of a block's tile: N rows of the step by 64 rows of weights for each of its warpgroups, which
/// multiply one or both slices of a unit at a time. One more warp fetches rows of the step.
template <int N_, int Warpgroups, int Slices, int Bits>
struct Shape {
  static constexpr int N = N_, kWarpgroups = Warpgroups, kSlices = Slices;
  // Where the fetching warp would cost the others registers, it is a warpgroup that gives up its own.
  static constexpr bool kGivesRegisters = Warpgroups == 2;
  static constexpr int kThreads = 128 * Warpgroups + (kGivesRegisters ? 128 : 32);
  // A stage of the pipeline has what a unit of weights needs: rows of the step by one or two groups of
  // columns, their scales, and for weights of two bits the sums of the halves.
  static constexpr int kGroups = Bits == 1 ? 2 : 1;
  static constexpr int kData = N * kGroup * 2;  // of a group
  static constexpr int kScales = kGroups * kData, kSums = kScales + kGroups * N * 4;
  static constexpr int kStage = (kSums + (Bits == 1 ? 0 : 2 * N * 4) + 1023) / 1024 * 1024;
  static constexpr int kStages = N == 128 ? 3 : 4;
  static constexpr size_t kShared = static_cast<size_t>(kStages) * (kStage + 16);
};

/// Words of two rows of weights as the operand of k-step `i` / 2; i of 0..15 for bits, of 0..7 for pairs of
/// them.
template <int Bits>
__device__ inline uint32_t expand(uint32_t word, int i) {
  if constexpr (Bits == 1) return ((word << (15 - i)) & 0x80008000u) ^ 0xbc00bc00u;  // 1 or -1
  return (word >> 2 * i) & 0x00030003u;                                              // the code times 2^-24
}

template <class S, int Bits, Epilogue E>
__global__ void __launch_bounds__(S::kThreads, 1) multiply_tiles_kernel(SignWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  constexpr int N = S::N;
  const SignWeights& w = work.weights;
  auto* full = reinterpret_cast<uint64_t*>(shared + S::kStages * S::kStage);
  uint64_t* empty = full + S::kStages;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_step_row = static_cast<int>(blockIdx.y) * N;
  start_successor();
  if (thread == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      init_barrier(full + s, 1);
      init_barrier(empty + s, 4 * S::kWarpgroups);
    }
    fence_barriers();
  }
  __syncthreads();

  if (warp >= 4 * S::kWarpgroups) {
    if constexpr (S::kGivesRegisters) lower_registers<40>();
    if (thread != 128 * S::kWarpgroups) return;
    wait_for_predecessor();
    const auto rows = static_cast<size_t>(work.in.rows), row = static_cast<size_t>(first_step_row);
    for (int unit = 0, s = 0, turn = 0; unit < w.units; ++unit) {
      if (turn > 0) wait(empty + s, static_cast<uint32_t>(turn - 1) & 1);
      unsigned char* to = shared + s * S::kStage;
      const int first = unit * S::kGroups, groups = min(S::kGroups, work.groups - first);
      arrive_expecting(full + s,
                       static_cast<uint32_t>(groups * (S::kData + N * 4) + (Bits == 1 ? 0 : 2 * N * 4)));
      for (int g = 0; g < groups; ++g) {
        const auto group = static_cast<size_t>(first + g);
        copy_bulk(to + g * S::kData, work.in.data + (group * rows + row) * kGroup * 2, S::kData, full + s);
        copy_bulk(to + S::kScales + g * N * 4, work.in.scales + group * rows + row, N * 4, full + s);
        if constexpr (Bits == 2) {
          copy_bulk(to + S::kSums, work.in.sums + 2 * group * rows + row, N * 4, full + s);
          copy_bulk(to + S::kSums + N * 4, work.in.sums + (2 * group + 1) * rows + row, N * 4, full + s);
        }
      }
      if (++s == S::kStages) {
        s = 0;
        ++turn;
      }
    }
    return;
  }
  if constexpr (S::kGivesRegisters) raise_registers<232>();

  constexpr int kSteps = Bits == 1 ? 8 : 4;  // of 16 columns in a slice
  const int tile = static_cast<int>(blockIdx.x) * 4 * S::kWarpgroups + warp;
  const bool has_rows = tile < w.tiles;  // of the padded weights
  const size_t first_unit = w.unit_index(has_rows ? tile : 0, 0);
  const uint4* words = w.words + first_unit * 32 + lane;  // eight units further: the next one of the tile
  const uint2* scales = w.scales + first_unit * 8 + lane / 4;
  float sum[N / 2];
#pragma unroll
  for (float& x : sum) x = 0;

  // Two units of weights ahead.
  uint4 ahead_words[2]{};
  uint2 ahead_scales[2]{};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i >= w.units) continue;
    ahead_words[i] = load_streaming(words + i * 256);
    ahead_scales[i] = __ldg(scales + i * 64);
  }
  constexpr int kSlices = S::kSlices;
  float product[kSlices][N / 2];
  for (int unit = 0, s = 0, turn = 0; unit < w.units; ++unit) {
    const uint4 now = ahead_words[0];
    const uint2 pairs = ahead_scales[0];
    ahead_words[0] = ahead_words[1];
    ahead_scales[0] = ahead_scales[1];
    if (unit + 2 < w.units) {
      ahead_words[1] = load_streaming(words + (unit + 2) * 256);
      ahead_scales[1] = __ldg(scales + (unit + 2) * 64);
    }
    const unsigned char* stage = shared + s * S::kStage;
    const uint64_t data = describe_shared(stage, 128, 2048);
    const auto* activation_scales = reinterpret_cast<const float2*>(stage + S::kScales) + (lane & 3);
    const auto* activation_sums = reinterpret_cast<const int2*>(stage + S::kSums) + (lane & 3);
#pragma unroll
    for (int first = 0; first < 2; first += kSlices) {
      uint32_t a[kSlices][kSteps][4];
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const uint32_t low = first + i == 0 ? now.x : now.z, high = first + i == 0 ? now.y : now.w;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          a[i][k][0] = expand<Bits>(low, 2 * k);
          a[i][k][1] = expand<Bits>(high, 2 * k);
          a[i][k][2] = expand<Bits>(low, 2 * k + 1);
          a[i][k][3] = expand<Bits>(high, 2 * k + 1);
        }
      }
      if (first == 0) wait(full + s, static_cast<uint32_t>(turn) & 1);
      fence_wgmma();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {  // descriptors count sixteen bytes
          wgmma_f16<N>(product[i], a[i][k],
                       data + (first + i) * (Bits == 1 ? S::kData / 16 : kSteps * 16) + k * 16, k > 0);
        }
      }
      commit_wgmma();
      wait_wgmma<0>();
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        const int slice = first + i;
        if (slice == 1 && 2 * unit + 1 >= work.slices) continue;  // what stands in its place is anything
        const uint32_t pair = slice == 0 ? pairs.x : pairs.y;
        const float scale_low = half_bits_to_float(pair), scale_high = half_bits_to_float(pair >> 16);
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          const float2 scale = activation_scales[4 * j + (Bits == 1 ? slice * N / 2 : 0)];
          float p[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) p[e] = product[i][4 * j + e];
          if constexpr (Bits == 2) {
            const int2 sums = activation_sums[4 * j + slice * N / 2];
            const float x = -static_cast<float>(sums.x), y = -static_cast<float>(sums.y);
#pragma unroll
            for (int e = 0; e < 4; ++e) p[e] = __fmaf_rn(p[e], 0x1p24f, e % 2 == 0 ? x : y);
          }
          sum[4 * j] = __fmaf_rn(p[0], __fmul_rn(scale_low, scale.x), sum[4 * j]);
          sum[4 * j + 1] = __fmaf_rn(p[1], __fmul_rn(scale_low, scale.y), sum[4 * j + 1]);
          sum[4 * j + 2] = __fmaf_rn(p[2], __fmul_rn(scale_high, scale.x), sum[4 * j + 2]);
          sum[4 * j + 3] = __fmaf_rn(p[3], __fmul_rn(scale_high, scale.y), sum[4 * j + 3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) arrive(empty + s);
    if (++s == S::kStages) {
      s = 0;
      ++turn;
    }
  }
  wait_for_predecessor();  // long over: what is added to was written before

  if (!has_rows) return;
  const int low_at = work.low_column(tile, lane / 4), high_at = work.high_column(tile, lane / 4);
  float* out = work.out.data + (first_step_row + 2 * (lane & 3)) * work.out.stride;
  if constexpr (E == Epilogue::kAdd) {
#pragma unroll
    for (int j = 0; j < N / 2; ++j) {  // all loads before the first store
      const int at = j % 4 < 2 ? low_at : high_at;
      product[0][j] = at >= 0 ? __ldcg(out + (8 * (j / 4) + j % 2) * work.out.stride + at) : 0;
    }
  }
#pragma unroll
  for (int j = 0; j < N / 2; ++j) {
    float* to = out + (8 * (j / 4) + j % 2) * work.out.stride;
    if constexpr (E == Epilogue::kSwiglu) {
      if (j % 4 < 2 && low_at >= 0) to[low_at] = silu(sum[j]) * sum[j + 2];
    } else {
      const int at = j % 4 < 2 ? low_at : high_at;
      if (at >= 0) to[at] = E == Epilogue::kAdd ? product[0][j] + sum[j] : sum[j];
    }
  }
}

template <class S, int Bits, Epilogue E>
void launch_tiles(const SignWork& work, cudaStream_t stream) {
  static const bool allowed = [] {
    allow_shared(multiply_tiles_kernel<S, Bits, E>, S::kShared);
    return true;
  }();
  static_cast<void>(allowed);
  constexpr int kRows = 64 * S::kWarpgroups;
  launch(multiply_tiles_kernel<S, Bits, E>,
         {dim3(static_cast<unsigned>((work.run_rows + kRows - 1) / kRows),
               static_cast<unsigned>((work.rows + S::N - 1) / S::N)),
          dim3(S::kThreads), S::kShared, true},
         stream, work);
}

template <class S, int Bits>
void choose_epilogue(const SignWork& work, Epilogue epilogue, cudaStream_t stream) {
  switch (epilogue) {
    case Epilogue::kStore:
      return launch_tiles<S, Bits, Epilogue::kStore>(work, stream);
    case Epilogue::kAdd:
      return launch_tiles<S, Bits, Epilogue::kAdd>(work, stream);
    case Epilogue::kSwiglu:
      return launch_tiles<S, Bits, Epilogue::kSwiglu>(work, stream);
  }
}

/// The shapes of tiles, with about the time that one takes for a unit of weights, in hundredths of a
/// microsecond.
constexpr struct {
  int rows, warpgroups, time;
} kTiles[kTileShapes] = {{16, 1, 40}, {32, 1, 54}, {64, 1, 97}, {64, 2, 126}, {128, 2, 230}};
constexpr int64_t kLatency = 100;  // of a tile alone

}  // namespace

bool tile_fits(int tile, int rows) {
  return rows % kTiles[tile].rows == 0;
}

int tile_of(int64_t weight_rows, int rows, int multiprocessors) {
  int best = -1;
  int64_t least = 0;
  for (int i = 0; i < kTileShapes; ++i) {
    const auto& tile = kTiles[i];
    if (!tile_fits(i, rows)) continue;
    const int64_t weights = 64 * tile.warpgroups;
    const int64_t blocks = (weight_rows + weights - 1) / weights * (rows / tile.rows);
    const int64_t time = std::max(kLatency, (blocks + multiprocessors - 1) / multiprocessors * tile.time);
    if (best < 0 || time <= least) {
      best = i;
      least = time;
    }
  }
  return best;
}

void multiply_tiles(const SignProduct& product, int tile, cudaStream_t stream) {
  const SignWork work = work_of(product);
  const auto choose = [&]<int Bits>() {
    const auto run = [&]<int N, int W, int S>() {
      choose_epilogue<Shape<N, W, S, Bits>, Bits>(work, product.epilogue, stream);
    };
    switch (tile) {
      case 0:
        return run.template operator()<16, 1, 2>();
      case 1:
        return run.template operator()<32, 1, 2>();
      case 2:
        return run.template operator()<64, 1, 2>();
      case 3:
        return run.template operator()<64, 2, 2>();
      default:
        return run.template operator()<128, 2, 1>();
    }
  };
  product.run->sign.bits == 1 ? choose.template operator()<1>() : choose.template operator()<2>();
}

}  // namespace niwaki::cuda
