// Few rows of the step: bits of weights times bit planes of activations, counted by the matrix instruction of one-bit operands.
#include <algorithm>

#include "cuda/linear.h"
#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kAhead = 8;           // units of weights on the way to a warp
constexpr size_t kShared = 100 << 10;  // of a block, so that two fit

/// Of a launch.
struct PlanesWork {
  SignWeights weights;
  Quantized in;
  Target target;
  int32_t rows;   // of the step
  int32_t batch;  // tiles whose sums wait in shared memory
};

/// Sums of a tile and a slice in shared memory: [step row][16], step rows 24 apart so that a warp's stores meet no bank twice.
template <int Rows>
constexpr int kSliceSums = Rows == 1 ? 16 : 24 * Rows;

/// Shared memory of a batch: sums, then the scales of weights and of activations, and the sums of activations.
template <int Rows>
struct PlanesShared {
  size_t tile_sums, sums, scales, activation_scales, total;
  __host__ __device__ PlanesShared(int units, int bits, int batch) {
    const auto slices = static_cast<size_t>(2 * units), groups = bits == 1 ? slices : (slices + 1) / 2;
    tile_sums = slices * kSliceSums<Rows> + (Rows == 1 ? 8 : 0);  // ints
    sums = tile_sums * sizeof(int32_t) * static_cast<size_t>(batch);
    scales = static_cast<size_t>(batch) * static_cast<size_t>(units) * 64;
    activation_scales = groups * Rows * sizeof(float);
    total = sums + scales + 3 * activation_scales;
  }
};

/// The planes of one row of the step (Rows == 1), which the lanes of a quad share, or of four, of which each lane of a quad has
/// one: the operands of a slice.
template <int Bits, int Rows>
struct Planes {
  static constexpr int kPlanes = Bits == 1 ? kBits1Planes : kBits2Planes;
  static constexpr int kWords = Bits == 1 ? kBits1Words : kBits2Words;
  static constexpr int kProducts = Rows == 1 ? 2 : (kPlanes + 1) / 2;
  static constexpr int kFours = Rows == 1 ? 1 : Rows / 4;
  uint32_t words[kFours][kProducts];

  __device__ void load(const Quantized& in, int slice, int rows, int lane) {
    const auto* data = reinterpret_cast<const uint32_t*>(in.data) +
                       static_cast<size_t>(slice) * static_cast<size_t>(in.rows) * kWords;
    if constexpr (Rows == 1) {
      words[0][0] = __ldcg(data + lane);
      words[0][1] = lane < 4 * (kPlanes - 8) ? __ldcg(data + 32 + lane) : 0;
    } else {
      // Column lane / 4 of a product is plane 2 m + (column & 1) of row column / 2.
      for (int f = 0; f < kFours; ++f) {
        const int row = 4 * f + lane / 8;
        for (int m = 0; m < kProducts; ++m) {
          const int plane = 2 * m + (lane >> 2 & 1);
          words[f][m] =
              row < rows && plane < kPlanes ? __ldcg(data + row * kWords + 4 * plane + (lane & 3)) : 0;
        }
      }
    }
  }

  /// The sums of weight rows lane / 4 and lane / 4 + 8; with Rows == 1 the lane's part of them.
  __device__ void multiply(uint32_t first, uint32_t second, int f, int lane, int (&sum)[2]) const {
    const uint32_t a[2] = {first, second};
    if constexpr (Rows == 1) {
      int c[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
      mma_bits(c, a, words[0][0]);
      mma_bits(e, a, words[0][1]);
      const int t = lane & 3, low = 1 << 2 * t;
      const int even = Bits == 1 ? (t == 0 ? 256 : 0) : (t == 0 ? 256 : t == 1 ? -1024 : 0);
      const int odd = Bits == 1 ? (t == 0 ? -512 : 0) : (t == 0 ? 512 : 0);
      for (int i = 0; i < 2; ++i)
        sum[i] = (c[2 * i] + 2 * c[2 * i + 1]) * low + e[2 * i] * even + e[2 * i + 1] * odd;
    } else {
      sum[0] = sum[1] = 0;
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        int c[4] = {0, 0, 0, 0};
        mma_bits(c, a, words[f][m]);
        const bool last = m == kProducts - 1;
        const int even = (last && Bits == 2 ? -1 : 1) * (1 << 2 * m), odd = (last ? -2 : 2) * (1 << 2 * m);
        for (int i = 0; i < 2; ++i) sum[i] += c[2 * i] * even + c[2 * i + 1] * odd;
      }
    }
  }
};

template <int Bits, int Rows, Epilogue E>
__global__ void __launch_bounds__(kThreads, 2) multiply_planes(PlanesWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using P = Planes<Bits, Rows>;
  const SignWeights& w = work.weights;
  const PlanesShared<Rows> layout(w.units, Bits, work.batch);
  auto* sums = reinterpret_cast<int32_t*>(shared);
  auto* scales = reinterpret_cast<uint2*>(shared + layout.sums);
  auto* activation_scales = reinterpret_cast<float*>(shared + layout.sums + layout.scales);
  auto* activation_sums = reinterpret_cast<int32_t*>(shared + layout.sums + layout.scales + layout.activation_scales);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int slices = 2 * w.units, groups = Bits == 1 ? slices : (slices + 1) / 2;
  const int all_tiles = (w.tiles - block + blocks - 1) / blocks;  // of this block
  const int turns = (w.units - warp + kWarps - 1) / kWarps;       // units of a tile that this warp takes
  start_successor();

  for (int first = 0; first < all_tiles; first += work.batch) {
    const int tiles = min(work.batch, all_tiles - first);
    const auto tile_at = [&](int i) { return static_cast<size_t>(block + (first + i) * blocks); };
    const auto words_at = [&](int item) {  // units in the outer, tiles in the inner loop
      const int turn = item / tiles;
      return w.words + (tile_at(item - turn * tiles) * static_cast<size_t>(w.units) +
                        static_cast<size_t>(warp + turn * kWarps)) * 32 + lane;
    };
    const int items = tiles * turns;
    uint4 ring[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < items) ring[i] = load_streaming(words_at(i));
    }
    const int scale_chunks = w.units * 4;  // of 16 bytes, of a tile
    for (int i = thread; i < tiles * scale_chunks; i += kThreads) {
      const int tile = i / scale_chunks, chunk = i - tile * scale_chunks;
      copy_async(shared + layout.sums + static_cast<size_t>(i) * 16,
                 reinterpret_cast<const uint8_t*>(w.scales) + (tile_at(tile) * static_cast<size_t>(scale_chunks) +
                                                               static_cast<size_t>(chunk)) * 16);
    }
    commit_copies();
    if (first == 0) {
      wait_for_predecessor();
      for (int i = thread; i < groups * Rows; i += kThreads) {
        const int group = i / Rows, row = i - group * Rows;
        const bool there = row < work.rows && group < work.target.groups;
        const auto at = static_cast<size_t>(group) * static_cast<size_t>(work.in.rows) + static_cast<size_t>(row);
        activation_scales[i] = there ? __ldcg(work.in.scales + at) : 0;
        for (int half = 0; half < 2; ++half) {
          const auto from = static_cast<size_t>(2 * group + half) * static_cast<size_t>(work.in.rows) +
                            static_cast<size_t>(row);
          activation_sums[(2 * group + half) * Rows + row] = there ? __ldcg(work.in.sums + from) : 0;
        }
      }
    }

    P planes[2];
    int turn = -1, tile = tiles - 1;
    for (int base = 0; base < items; base += kAhead) {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int item = base + j;
        if (item >= items) break;
        const uint4 now = ring[j];
        if (item + kAhead < items) ring[j] = load_streaming(words_at(item + kAhead));
        if (++tile == tiles) {
          tile = 0;
          ++turn;
          for (int s = 0; s < 2; ++s) {
            const int slice = 2 * (warp + turn * kWarps) + s;
            if (slice < work.target.slices) {
              planes[s].load(work.in, slice, work.rows, lane);
            } else {  // its weights are nothing's
              for (auto& four : planes[s].words)
                for (auto& word : four) word = 0;
            }
          }
        }
        const int unit = warp + turn * kWarps;
        int32_t* to = sums + static_cast<size_t>(tile) * layout.tile_sums +
                      static_cast<size_t>(2 * unit) * kSliceSums<Rows>;
        if constexpr (Rows == 1) {
          // Both slices' sums of both rows, shared out in the quad: bit 0 of the lane chooses the row, bit 1 the slice.
          int part[2];
          for (int s = 0; s < 2; ++s) {
            int sum[2];
            planes[s].multiply(s == 0 ? now.x : now.z, s == 0 ? now.y : now.w, 0, lane, sum);
            const int give = lane & 1 ? sum[0] : sum[1], keep = lane & 1 ? sum[1] : sum[0];
            part[s] = keep + __shfl_xor_sync(kAllLanes, give, 1);
          }
          const int give = lane & 2 ? part[0] : part[1], keep = lane & 2 ? part[1] : part[0];
          to[(lane >> 1 & 1) * 16 + (lane & 1) * 8 + lane / 4] = keep + __shfl_xor_sync(kAllLanes, give, 2);
        } else {
          for (int s = 0; s < 2; ++s) {
            for (int f = 0; f < P::kFours; ++f) {
              int sum[2];
              planes[s].multiply(s == 0 ? now.x : now.z, s == 0 ? now.y : now.w, f, lane, sum);
              int32_t* row = to + s * kSliceSums<Rows> + (4 * f + (lane & 3)) * 24 + lane / 4;
              row[0] = sum[0];
              row[8] = sum[1];
            }
          }
        }
      }
    }
    wait_copies<0>();
    __syncthreads();

    // Rows i and i + 8 of a tile, for a row of the step: slices ascending.
    for (int item = thread; item < tiles * 8 * work.rows; item += kThreads) {
      const int i = item & 7, at = item >> 3, row = at / tiles, t = at - row * tiles;
      const int32_t* from = sums + static_cast<size_t>(t) * layout.tile_sums + (Rows == 1 ? 0 : 24 * row) + i;
      const uint2* tile_scales = scales + static_cast<size_t>(t) * static_cast<size_t>(w.units) * 8 + i;
      float low = 0, high = 0;
#pragma unroll 4
      for (int s = 0; s < slices; ++s) {
        const uint2 packed = tile_scales[s / 2 * 8];
        const uint32_t pair = s & 1 ? packed.y : packed.x;
        const float scale = activation_scales[(Bits == 1 ? s : s / 2) * Rows + row];
        const int sum = Bits == 1 ? activation_sums[2 * s * Rows + row] + activation_sums[(2 * s + 1) * Rows + row]
                                  : activation_sums[s * Rows + row];
        const int32_t a = from[s * kSliceSums<Rows>], b = from[s * kSliceSums<Rows> + 8];
        low = __fmaf_rn(static_cast<float>((Bits == 1 ? 2 * a : a) - sum),
                        __fmul_rn(half_bits_to_float(pair), scale), low);
        high = __fmaf_rn(static_cast<float>((Bits == 1 ? 2 * b : b) - sum),
                         __fmul_rn(half_bits_to_float(pair >> 16), scale), high);
      }
      work.target.finish<E>(static_cast<int>(tile_at(t)), i, row, low, high);
    }
    __syncthreads();
  }
}

template <int Bits, int Rows, Epilogue E>
void launch_planes(const MatrixRun& run, const Quantized& in, int rows, const Target& target, int multiprocessors,
                   cudaStream_t stream) {
  const SignWeights& w = run.sign;
  const int tiles = static_cast<int>((run.rows + 15) / 16);
  const int blocks = std::min(tiles, 2 * multiprocessors);
  PlanesWork work{w, in, target, rows, (tiles + blocks - 1) / blocks};
  work.weights.tiles = tiles;
  const auto bytes = [&] { return PlanesShared<Rows>(w.units, Bits, work.batch).total; };
  while (work.batch > 1 && bytes() > kShared / 2) --work.batch;
  static const bool allowed = [] {
    allow_shared(multiply_planes<Bits, Rows, E>, 220 << 10);
    return true;
  }();
  static_cast<void>(allowed);
  launch(multiply_planes<Bits, Rows, E>, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes(), true}, stream,
         work);
}

template <int Bits, int Rows>
void choose_epilogue(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                     int multiprocessors, cudaStream_t stream) {
  switch (epilogue) {
    case Epilogue::kStore:
      return launch_planes<Bits, Rows, Epilogue::kStore>(run, in, rows, target, multiprocessors, stream);
    case Epilogue::kAdd:
      return launch_planes<Bits, Rows, Epilogue::kAdd>(run, in, rows, target, multiprocessors, stream);
    case Epilogue::kSwiglu:
      return launch_planes<Bits, Rows, Epilogue::kSwiglu>(run, in, rows, target, multiprocessors, stream);
  }
}

}  // namespace

void multiply_planes(const MatrixRun& run, const Quantized& in, int rows, const Target& target, Epilogue epilogue,
                     int multiprocessors, cudaStream_t stream) {
  const auto choose_rows = [&]<int Bits>() {
    if (rows == 1) return choose_epilogue<Bits, 1>(run, in, rows, target, epilogue, multiprocessors, stream);
    if (rows <= 4) return choose_epilogue<Bits, 4>(run, in, rows, target, epilogue, multiprocessors, stream);
    choose_epilogue<Bits, 8>(run, in, rows, target, epilogue, multiprocessors, stream);
  };
  run.sign.bits == 1 ? choose_rows.template operator()<1>() : choose_rows.template operator()<2>();
}

}  // namespace niwaki::cuda
