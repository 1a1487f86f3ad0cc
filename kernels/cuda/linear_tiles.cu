// Many rows of the step: weights are expanded to float16 in registers, 64 rows to a warpgroup, and multiplied by tiles of rows of
// the step in shared memory (wgmma). Integers in float16 and their sums in float32 are exact.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kWarpgroups = 2;  // of 64 rows of weights each
constexpr int kThreads = 128 * kWarpgroups;

/// Of a launch.
struct TilesWork {
  SignWeights weights;
  Quantized in;
  Target target;
  int32_t rows;  // of the step
};

/// A stage of the pipeline: N rows of the step by a group of columns, their scale, and the sums of its halves.
template <int N>
struct Stage {
  static constexpr int kData = N * kGroup * 2;
  static constexpr int kBytes = kData + N * 12;
  static constexpr int kPadded = (kBytes + 1023) / 1024 * 1024;
  static constexpr int kCount = N == 128 ? 5 : 6;
};

/// Words of two rows of weights as the operand of k-step `i` / 2; i of 0..15 for bits, of 0..7 for pairs of them.
template <int Bits>
__device__ inline uint32_t expand(uint32_t word, int i) {
  if constexpr (Bits == 1) return ((word << (15 - i)) & 0x80008000u) ^ 0xbc00bc00u;  // 1 or -1
  return (word >> 2 * i) & 0x00030003u;  // the code times 2^-24
}

template <int N, int Bits, Epilogue E>
__global__ void __launch_bounds__(kThreads, 1) multiply_tiles_kernel(TilesWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using S = Stage<N>;
  const SignWeights& w = work.weights;
  auto* full = reinterpret_cast<uint64_t*>(shared + S::kCount * S::kPadded);
  uint64_t* empty = full + S::kCount;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first_step_row = static_cast<int>(blockIdx.y) * N;
  const int groups = work.target.groups;
  start_successor();
  if (thread == 0) {
    for (int s = 0; s < S::kCount; ++s) {
      init_barrier(full + s, 1);
      init_barrier(empty + s, 4 * kWarpgroups);
    }
    fence_barriers();
  }
  __syncthreads();

  // By one thread: asks for a group of activations, into the stage that had kCount groups before it.
  const auto fetch = [&](int g) {
    if (g >= groups) return;
    const int s = g % S::kCount, turn = g / S::kCount;
    if (turn > 0) wait(empty + s, static_cast<uint32_t>(turn - 1) & 1);
    const auto rows = static_cast<size_t>(work.in.rows), row = static_cast<size_t>(first_step_row);
    const auto group = static_cast<size_t>(g);
    unsigned char* to = shared + s * S::kPadded;
    arrive_expecting(full + s, Bits == 1 ? S::kData + N * 4 : S::kBytes);
    copy_bulk(to, work.in.data + (group * rows + row) * kGroup * 2, S::kData, full + s);
    copy_bulk(to + S::kData, work.in.scales + group * rows + row, N * 4, full + s);
    if constexpr (Bits == 2) {
      copy_bulk(to + S::kData + N * 4, work.in.sums + 2 * group * rows + row, N * 4, full + s);
      copy_bulk(to + S::kData + N * 8, work.in.sums + (2 * group + 1) * rows + row, N * 4, full + s);
    }
  };
  // So many groups ahead of the one at hand; the other warpgroup may be late by the rest of the stages.
  constexpr int kAhead = S::kCount - 2;

  constexpr int kSlicesPerGroup = Bits, kSteps = 8 / kSlicesPerGroup;  // k-steps of 16 columns in a slice
  const int tile = static_cast<int>(blockIdx.x) * 4 * kWarpgroups + warp;
  const uint4* words = w.words + static_cast<size_t>(tile) * static_cast<size_t>(w.units) * 32 + lane;
  const uint2* scales = w.scales + static_cast<size_t>(tile) * static_cast<size_t>(w.units) * 8 + lane / 4;
  const int slices = work.target.slices;
  float sum[N / 2], product[N / 2];
#pragma unroll
  for (float& x : sum) x = 0;

  uint4 next_words = load_streaming(words);
  uint2 next_scales = __ldg(scales);
  uint4 now{};
  uint2 now_scales{};
  wait_for_predecessor();
  if (thread == 0) {
    for (int g = 0; g < kAhead; ++g) fetch(g);
  }
  for (int slice = 0; slice < slices; ++slice) {
    if (slice % 2 == 0) {
      now = next_words;
      now_scales = next_scales;
      const int unit = slice / 2 + 1;
      if (unit < w.units) {
        next_words = load_streaming(words + unit * 32);
        next_scales = __ldg(scales + unit * 8);
      }
    }
    const int group = slice / kSlicesPerGroup, s = group % S::kCount;
    unsigned char* stage = shared + s * S::kPadded;
    const int half = Bits == 1 ? 0 : slice % 2;
    if (thread == 0 && half == 0) fetch(group + kAhead);
    __syncwarp();
    const uint32_t low = slice % 2 == 0 ? now.x : now.z, high = slice % 2 == 0 ? now.y : now.w;
    uint32_t a[kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      a[k][0] = expand<Bits>(low, 2 * k);
      a[k][1] = expand<Bits>(high, 2 * k);
      a[k][2] = expand<Bits>(low, 2 * k + 1);
      a[k][3] = expand<Bits>(high, 2 * k + 1);
    }
    wait(full + s, static_cast<uint32_t>(group / S::kCount) & 1);
    fence_wgmma();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      wgmma_f16<N>(product, a[k], describe_shared(stage + (half * kSteps + k) * 256, 128, 2048), k > 0);
    }
    commit_wgmma();
    const auto* activation_scales = reinterpret_cast<const float2*>(stage + S::kData);
    const auto* activation_sums = reinterpret_cast<const int2*>(stage + S::kData + N * 4 + half * N * 4);
    const uint32_t pair = slice % 2 == 0 ? now_scales.x : now_scales.y;
    const float scale_low = half_bits_to_float(pair), scale_high = half_bits_to_float(pair >> 16);
    wait_wgmma<0>();
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float2 scale = activation_scales[4 * j + (lane & 3)];
      float p[4] = {product[4 * j], product[4 * j + 1], product[4 * j + 2], product[4 * j + 3]};
      if constexpr (Bits == 2) {
        const int2 sums = activation_sums[4 * j + (lane & 3)];
        const float x = -static_cast<float>(sums.x), y = -static_cast<float>(sums.y);
        for (int i = 0; i < 4; ++i) p[i] = __fmaf_rn(p[i], 0x1p24f, i % 2 == 0 ? x : y);
      }
      sum[4 * j] = __fmaf_rn(p[0], __fmul_rn(scale_low, scale.x), sum[4 * j]);
      sum[4 * j + 1] = __fmaf_rn(p[1], __fmul_rn(scale_low, scale.y), sum[4 * j + 1]);
      sum[4 * j + 2] = __fmaf_rn(p[2], __fmul_rn(scale_high, scale.x), sum[4 * j + 2]);
      sum[4 * j + 3] = __fmaf_rn(p[3], __fmul_rn(scale_high, scale.y), sum[4 * j + 3]);
    }
    if (Bits == 1 || half == 1 || slice == slices - 1) {
      __syncwarp();
      if (lane == 0) arrive(empty + s);
    }
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
    for (int i = 0; i < 2; ++i) {
      const int row = first_step_row + 8 * j + 2 * (lane & 3) + i;
      if (row < work.rows) work.target.finish<E>(tile, lane / 4, row, sum[4 * j + i], sum[4 * j + 2 + i]);
    }
  }
}

template <int N, int Bits, Epilogue E>
void launch_tiles(const MatrixRun& run, const Quantized& in, int rows, const Target& target, cudaStream_t stream) {
  const auto tiles = static_cast<unsigned>((run.rows + 64 * kWarpgroups - 1) / (64 * kWarpgroups));
  constexpr size_t kShared = static_cast<size_t>(Stage<N>::kCount) * (Stage<N>::kPadded + 16);
  static const bool allowed = [] {
    allow_shared(multiply_tiles_kernel<N, Bits, E>, kShared);
    return true;
  }();
  static_cast<void>(allowed);
  launch(multiply_tiles_kernel<N, Bits, E>,
         {dim3(tiles, static_cast<unsigned>((rows + N - 1) / N)), dim3(kThreads), kShared, true}, stream,
         TilesWork{run.sign, in, target, rows});
}

template <int N, int Bits>
void choose_epilogue(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                     cudaStream_t stream) {
  switch (epilogue) {
    case Epilogue::kStore:
      return launch_tiles<N, Bits, Epilogue::kStore>(run, in, rows, target, stream);
    case Epilogue::kAdd:
      return launch_tiles<N, Bits, Epilogue::kAdd>(run, in, rows, target, stream);
    case Epilogue::kSwiglu:
      return launch_tiles<N, Bits, Epilogue::kSwiglu>(run, in, rows, target, stream);
  }
}

/// Rows of the step in a tile: those that take the fewest cycles, by the rate of the instruction and the tiles that a
/// multiprocessor gets.
int tile_rows(int64_t weight_rows, int rows, int multiprocessors) {
  constexpr struct {
    int rows, cycles;
  } kSizes[] = {{16, 14}, {32, 18}, {64, 32}, {128, 64}};
  const int64_t blocks = (weight_rows + 64 * kWarpgroups - 1) / (64 * kWarpgroups);
  int best = 0;
  int64_t least = 0;
  for (const auto& size : kSizes) {
    if (rows % size.rows != 0) continue;
    const int64_t cycles = (blocks * (rows / size.rows) + multiprocessors - 1) / multiprocessors * size.cycles;
    if (best == 0 || cycles <= least) {
      best = size.rows;
      least = cycles;
    }
  }
  return best;
}

}  // namespace

void multiply_tiles(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                    int multiprocessors, cudaStream_t stream) {
  const int n = tile_rows(run.rows, rows, multiprocessors);
  const auto choose = [&]<int Bits>() {
    switch (n) {
      case 16:
        return choose_epilogue<16, Bits>(run, in, rows, target, epilogue, stream);
      case 32:
        return choose_epilogue<32, Bits>(run, in, rows, target, epilogue, stream);
      case 64:
        return choose_epilogue<64, Bits>(run, in, rows, target, epilogue, stream);
      default:
        return choose_epilogue<128, Bits>(run, in, rows, target, epilogue, stream);
    }
  };
  run.sign.bits == 1 ? choose.template operator()<1>() : choose.template operator()<2>();
}

}  // namespace niwaki::cuda
