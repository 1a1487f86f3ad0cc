// Many rows of the step: weights are expanded to float16 in registers, 64 rows to a warpgroup, and multiplied
// by tiles of rows of the step in shared memory (wgmma). Integers in float16 and their sums in float32 are
// exact.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kUnitWords = 4 * 32 * 16, kUnitPairs = 4 * 8 * 8;  // bytes of a unit of a warpgroup's tiles

/// Shape of a block's tile: N rows of the step by 64 rows of weights for each of its warpgroups; `Blocks` of
/// them fit a multiprocessor. `Ahead`: a warpgroup has two slices under way.
template <int N_, int Warpgroups, int Stages, int Blocks, bool Ahead, int Bits>
struct Shape {
  static constexpr int N = N_, kWarpgroups = Warpgroups, kStages = Stages, kBlocks = Blocks;
  static constexpr bool kAhead = Ahead;
  // The fetching warps are in a warpgroup that gives its registers to the others.
  static constexpr int kThreads = 128 * (Warpgroups + 1);
  static constexpr int kLaunchRegisters = 65536 / Blocks / kThreads / 8 * 8;
  static constexpr int kLeastRegisters = Blocks > 2 || Warpgroups > 3 ? 32 : 40;
  static constexpr int kRegisters =
      std::min((kLaunchRegisters * (Warpgroups + 1) - kLeastRegisters) / Warpgroups / 8 * 8, 232);
  static constexpr int kFewRegisters =
      std::min(kLaunchRegisters * (Warpgroups + 1) - kRegisters * Warpgroups, 64) / 8 * 8;
  // A stage of the pipeline has a unit of weights with its scales, rows of the step by one or two groups of
  // columns, their scales, and for weights of two bits the sums of the halves.
  static constexpr int kGroups = Bits == 1 ? 2 : 1;
  static constexpr int kData = N * kGroup * 2;  // of a group
  static constexpr int kWords = kGroups * kData, kPairs = kWords + Warpgroups * kUnitWords;
  static constexpr int kScales = kPairs + Warpgroups * kUnitPairs, kSums = kScales + kGroups * N * 4;
  static constexpr int kUsed = kSums + (Bits == 1 ? 0 : 2 * N * 4), kStage = (kUsed + 127) / 128 * 128;
  static constexpr size_t kShared = static_cast<size_t>(kStages) * (kStage + 16);
  // Warpgroups whose units lie beside each other.
  static constexpr int kTogether = Warpgroups % 2 == 0 ? 2 : 1;
};

/// Words of two rows of weights as the operand of k-step `i` / 2; i of 0..15 for bits, of 0..7 for pairs of
/// them.
template <int Bits>
__device__ inline uint32_t expand(uint32_t word, int i, uint32_t ones) {
  if constexpr (Bits == 1) return ((word << (15 - i)) & 0x80008000u) ^ ones;  // 1 or -1
  return (word >> 2 * i) & 0x00030003u;                                       // the code times 2^-24
}

/// Stages of a block in turn, as those that fill them see them.
template <class S, class F>
__device__ inline void fill_stages(int units, unsigned char* shared, uint64_t* full, uint64_t* empty, F&& f) {
  for (int unit = 0, s = 0, turn = 0; unit < units; ++unit) {
    if (turn > 0) wait(empty + s, static_cast<uint32_t>(turn - 1) & 1);
    f(unit, shared + s * S::kStage, full + s);
    if (++s == S::kStages) {
      s = 0;
      ++turn;
    }
  }
}

/// By one thread: weights of a block's tiles. They do not wait for the kernel before.
template <class S>
__device__ inline void fetch_weights(const SignWork& work, unsigned char* shared, uint64_t* full,
                                     uint64_t* empty) {
  const SignWeights& w = work.weights;
  const int first = static_cast<int>(blockIdx.x) * 4 * S::kWarpgroups;
  fill_stages<S>(w.units, shared, full, empty, [&](int unit, unsigned char* to, uint64_t* barrier) {
    arrive_expecting(barrier, S::kWarpgroups * (kUnitWords + kUnitPairs));
#pragma unroll
    for (int i = 0; i < S::kWarpgroups; i += S::kTogether) {
      const int tile = first + 4 * i;
      const size_t at = w.unit_index(tile < w.tiles ? tile : 0, unit);
      copy_bulk(to + S::kWords + i * kUnitWords, w.words + at * 32, S::kTogether * kUnitWords, barrier);
      copy_bulk(to + S::kPairs + i * kUnitPairs, w.scales + at * 8, S::kTogether * kUnitPairs, barrier);
    }
  });
}

/// By another: rows of the step.
template <class S, int Bits>
__device__ inline void fetch_rows(const SignWork& work, unsigned char* shared, uint64_t* full,
                                  uint64_t* empty) {
  constexpr int N = S::N;
  const auto rows = static_cast<size_t>(work.in.rows), row = static_cast<size_t>(blockIdx.y) * N;
  const uint8_t* data = work.in.data + row * kGroup * 2;
  const float* scales = work.in.scales + row;
  const int32_t* sums = work.in.sums + row;
  wait_for_predecessor();
  fill_stages<S>(
      work.weights.units, shared, full, empty, [&](int unit, unsigned char* to, uint64_t* barrier) {
        const int groups = min(S::kGroups, work.groups - unit * S::kGroups);
        arrive_expecting(barrier,
                         static_cast<uint32_t>(groups * (S::kData + N * 4) + (Bits == 1 ? 0 : 2 * N * 4)));
        for (int g = 0; g < groups; ++g) {
          copy_bulk(to + g * S::kData, data, S::kData, barrier);
          copy_bulk(to + S::kScales + g * N * 4, scales, N * 4, barrier);
          data += rows * kGroup * 2;
          scales += rows;
          if constexpr (Bits == 2) {
            copy_bulk(to + S::kSums, sums, N * 4, barrier);
            copy_bulk(to + S::kSums + N * 4, sums + rows, N * 4, barrier);
            sums += 2 * rows;
          }
        }
      });
}

template <class S, int Bits, Epilogue E>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    multiply_tiles_kernel(const __grid_constant__ SignWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  constexpr int N = S::N;
  const SignWeights& w = work.weights;
  auto* full = reinterpret_cast<uint64_t*>(shared + S::kStages * S::kStage);
  uint64_t* empty = full + S::kStages;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  start_successor();
  if (thread == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      init_barrier(full + s, 2);
      init_barrier(empty + s, 4 * S::kWarpgroups);
    }
    fence_barriers();
  }
  __syncthreads();

  if (warp >= 4 * S::kWarpgroups) {
    lower_registers<S::kFewRegisters>();
    if (thread == 128 * S::kWarpgroups) fetch_weights<S>(work, shared, full, empty);
    if (thread == 128 * S::kWarpgroups + 32) fetch_rows<S, Bits>(work, shared, full, empty);
    return;
  }
  raise_registers<S::kRegisters>();

  constexpr int kSteps = Bits == 1 ? 8 : 4;  // of 16 columns in a slice
  // Two halves of -1, which the compiler must not know: one instruction takes one constant.
  const uint32_t ones = 0xbc00bc00u ^ static_cast<uint32_t>(w.bits >> 8);
  float sum[N / 2];
#pragma unroll
  for (float& x : sum) x = 0;
  int s = 0;  // the stage
  uint32_t parity = 0;
  const unsigned char* stage = shared;
  uint4 words;
  uint2 pairs{}, next_pairs;
  // Waits for the current stage, and gets its weights.
  const auto take = [&] {
    wait(full + s, parity);
    words = reinterpret_cast<const uint4*>(stage + S::kWords)[thread];
    next_pairs = reinterpret_cast<const uint2*>(stage + S::kPairs)[thread / 4];
  };
  const auto advance = [&] {
    if (++s == S::kStages) {
      s = 0;
      parity ^= 1;
    }
    stage = shared + s * S::kStage;
  };
  const auto expand_slice = [&](uint32_t(&a)[kSteps][4], int slice) {
    const uint32_t low = slice == 0 ? words.x : words.z, high = slice == 0 ? words.y : words.w;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      a[k][0] = expand<Bits>(low, 2 * k, ones);
      a[k][1] = expand<Bits>(high, 2 * k, ones);
      a[k][2] = expand<Bits>(low, 2 * k + 1, ones);
      a[k][3] = expand<Bits>(high, 2 * k + 1, ones);
    }
  };
  // Begins the products of a slice of the current stage.
  const auto multiply = [&](float(&p)[N / 2], const uint32_t(&a)[kSteps][4], int slice) {
    // Descriptors count sixteen bytes. The reduction gives a uniform register, as products take it.
    const uint64_t data = describe_shared(stage, 128, 2048);
    const uint32_t low = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(data)) +
                         slice * (Bits == 1 ? S::kData / 16 : kSteps * 16);
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) wgmma_f16<N>(p, a[k], data >> 32 << 32 | (low + k * 16), k > 0);
    commit_wgmma();
  };
  const auto add = [&](float(&product)[N / 2], const unsigned char* at, int slice) {
    const auto* activation_scales = reinterpret_cast<const float2*>(at + S::kScales) + (lane & 3);
    const auto* activation_sums = reinterpret_cast<const int2*>(at + S::kSums) + (lane & 3);
    const uint32_t pair = slice == 0 ? pairs.x : pairs.y;
    const float scale_low = half_bits_to_float(pair), scale_high = half_bits_to_float(pair >> 16);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float2 scale = activation_scales[4 * j + (Bits == 1 ? slice * N / 2 : 0)];
      float p[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) p[e] = product[4 * j + e];
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
  };
  const auto release = [&](int released) {
    __syncwarp();
    if (lane == 0) arrive(empty + released);
  };

  // Where results go, and what is there before. Asked for late, so as not to take registers meanwhile.
  const int64_t stride = work.out.stride;
  int low_at, high_at;
  float* out;
  float before[N / 2];
  const auto read_before = [&] {
    const int tile = static_cast<int>(blockIdx.x) * 4 * S::kWarpgroups + warp;
    const bool has_rows = tile < w.tiles;  // of the padded weights
    low_at = has_rows ? work.low_column(tile, lane / 4) : -1;
    high_at = has_rows ? work.high_column(tile, lane / 4) : -1;
    out = work.out.data + (static_cast<int>(blockIdx.y) * N + 2 * (lane & 3)) * stride;
    wait_for_predecessor();  // long over: what is added to was written before
    if constexpr (E == Epilogue::kAdd) {
#pragma unroll
      for (int j = 0; j < N / 2; ++j) {
        const int at = j % 4 < 2 ? low_at : high_at;
        before[j] = at >= 0 ? __ldcg(out + (8 * (j / 4) + j % 2) * stride + at) : 0;
      }
    }
  };
  const bool odd = work.slices % 2 != 0;  // what stands in the last slice's place is anything

  if constexpr (!S::kAhead) {
    // A slice after the other: others multiply meanwhile.
    float p[N / 2];
    uint32_t a[kSteps][4];
    for (int unit = 0; unit < w.units; ++unit) {
      take();
      pairs = next_pairs;
#pragma unroll
      for (int slice = 0; slice < 2; ++slice) {
        expand_slice(a, slice);
        multiply(p, a, slice);
        wait_wgmma<0>();
        if (slice == 0 || !odd || unit + 1 < w.units) add(p, stage, slice);
      }
      release(s);
      advance();
    }
    read_before();
  } else {
    // While one is multiplied, the one before is added and the next one's weights are expanded.
    float p[2][N / 2];
    uint32_t a[2][kSteps][4];
    take();
    expand_slice(a[0], 0);
    multiply(p[0], a[0], 0);
    expand_slice(a[1], 1);
    wait_wgmma<0>();
    pairs = next_pairs;
    for (int unit = 0; unit < w.units - 1; ++unit) {
      multiply(p[1], a[1], 1);
      add(p[0], stage, 0);
      const unsigned char* before_stage = stage;
      const int released = s;
      advance();
      take();
      expand_slice(a[0], 0);
      wait_wgmma<0>();
      multiply(p[0], a[0], 0);
      add(p[1], before_stage, 1);
      release(released);
      expand_slice(a[1], 1);
      wait_wgmma<0>();
      pairs = next_pairs;
    }
    multiply(p[1], a[1], 1);
    add(p[0], stage, 0);
    read_before();
    wait_wgmma<0>();
    if (!odd) add(p[1], stage, 1);
    release(s);
  }

  const auto write = [&](int at, int first) {  // of a row of weights
    if (at < 0) return;
    float* to = out + at;
#pragma unroll
    for (int j = first; j < N / 2; j += 4) {
#pragma unroll
      for (int e = j; e < j + 2; ++e) {
        if constexpr (E == Epilogue::kSwiglu) {
          *to = silu(sum[e]) * sum[e + 2];
        } else {
          *to = E == Epilogue::kAdd ? before[e] + sum[e] : sum[e];
        }
        to += e == j ? stride : 7 * stride;
      }
    }
  };
  write(low_at, 0);
  if constexpr (E != Epilogue::kSwiglu) write(high_at, 2);
}

template <class S, int Bits, Epilogue E>
void launch_tiles(const SignWork& work, cudaStream_t stream) {
  static OncePerGpu allowed;
  if (allowed.first()) allow_shared(multiply_tiles_kernel<S, Bits, E>, S::kShared);
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

/// The shapes of tiles, with about the time of a unit of weights in hundredths of a microsecond, where one,
/// two, .. blocks are on a multiprocessor, beginning and end included.
constexpr struct {
  int rows, warpgroups, blocks, times[3];
} kTiles[kTileShapes] = {{16, 1, 2, {62, 73}}, {16, 1, 3, {75, 92, 97}}, {32, 1, 1, {61}}, {32, 3, 1, {113}},
                         {64, 1, 1, {73}},     {64, 3, 1, {155}},        {64, 4, 1, {195}}};

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
    const int64_t each = (blocks + multiprocessors - 1) / multiprocessors, last = each % tile.blocks;
    const int64_t time =
        each / tile.blocks * tile.times[tile.blocks - 1] + (last > 0 ? tile.times[last - 1] : 0);
    if (best < 0 || time < least) {
      best = i;
      least = time;
    }
  }
  return best;
}

void multiply_tiles(const SignProduct& product, int tile, cudaStream_t stream) {
  const SignWork work = work_of(product);
  const auto choose = [&]<int Bits>() {
    const auto run = [&]<int N, int Warpgroups, int Stages, int Blocks, bool Ahead>() {
      choose_epilogue<Shape<N, Warpgroups, Stages, Blocks, Ahead, Bits>, Bits>(work, product.epilogue,
                                                                               stream);
    };
    switch (tile) {
      case 0:
        return run.template operator()<16, 1, 10, 2, true>();
      case 1:
        return run.template operator()<16, 1, 7, 3, true>();
      case 2:
        return run.template operator()<32, 1, 10, 1, true>();
      case 3:
        return run.template operator()<32, 3, 9, 1, true>();
      case 4:
        return run.template operator()<64, 1, 6, 1, true>();
      case 5:
        return run.template operator()<64, 3, 5, 1, false>();
      default:
        return run.template operator()<64, 4, 5, 1, false>();
    }
  };
  product.run->sign.bits == 1 ? choose.template operator()<1>() : choose.template operator()<2>();
}

}  // namespace niwaki::cuda
