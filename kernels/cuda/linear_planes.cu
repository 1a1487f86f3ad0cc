// Few rows of the step: bits of weights times bit planes of activations, counted by the matrix instruction of one-bit operands.
//
// A block has a stretch of tiles, and goes through them in batches. Each of its warps takes every sixteenth unit of a tile, whose words
// come through a ring of its own in shared memory, many units ahead. Exact sums of a slice wait in shared memory until all
// slices of the batch are there; then they are scaled and added, slices ascending.
#include <algorithm>

#include "cuda/linear_kernels.h"
#include "cuda/prepare.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kNormGroups = 3;          // that a warp norms at most
constexpr int kQuantizedTiles = 16;     // whose SwiGLU makes a group of the next operation
constexpr int kRing = 8;                // units of weights on the way to a warp, one of them at hand
constexpr size_t kSumBytes = 26 << 10;  // that a block's batches may wait in, so that two blocks fit

/// Of a launch.
struct PlanesWork : SignWork {
  StepView step;
  FloatRows normed;
  RowNorm norm;
  Quantized next;
  int32_t next_op;
  int32_t tiles;  // of the run
  int32_t batch;
};

/// Sums of a tile and a slice in shared memory: [step row][16], step rows 24 apart so that a warp's stores meet no bank twice.
template <int Rows>
constexpr int kSliceSums = Rows == 1 ? 16 : 24 * Rows;

/// Shared memory of a block, in this order.
template <int Bits, int Rows>
struct PlanesShared {
  static constexpr size_t kRingBytes = static_cast<size_t>(kWarps) * kRing * 512;
  size_t tile_sums;  // ints
  size_t batch_sums, batch_scales, sums, scales, activations, squares, planes, swiglu, total;

  __host__ __device__ PlanesShared(int units, int batch, bool normed) {
    const auto slices = static_cast<size_t>(2 * units), groups = Bits == 1 ? slices : (slices + 1) / 2;
    tile_sums = slices * kSliceSums<Rows> + (Rows == 1 ? 8 : 0);
    batch_sums = tile_sums * sizeof(int32_t) * static_cast<size_t>(batch);
    batch_scales = static_cast<size_t>(batch) * static_cast<size_t>(units) * 64;
    size_t end = kRingBytes;
    const auto take = [&end](size_t bytes) {
      const size_t at = end;
      end += (bytes + 15) / 16 * 16;
      return at;
    };
    sums = take(2 * batch_sums);  // of the batch at hand and of the one before
    scales = take(2 * batch_scales);
    activations = take(groups * Rows * 12);  // scales, then sums as Quantized has them
    squares = take(normed ? groups * sizeof(float) : 0);
    planes = take(normed ? (Bits == 1 ? kBits1Words * groups : 2 * kBits2Words * groups) * 4 : 0);
    swiglu = take(static_cast<size_t>(Rows) * kGroup * sizeof(float));
    total = end;
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

  /// `data`: of the slice, [row][kWords], as the last kernel wrote it or in shared memory.
  template <bool Shared>
  __device__ void load(const uint32_t* data, int rows, int lane) {
    const auto word = [data](int at) { return Shared ? data[at] : __ldcg(data + at); };
    if constexpr (Rows == 1) {
      words[0][0] = word(lane);
      words[0][1] = lane < 4 * (kPlanes - 8) ? word(32 + lane) : 0;
    } else {
      // Column lane / 4 of a product is plane 2 m + (column & 1) of row column / 2.
#pragma unroll
      for (int f = 0; f < kFours; ++f) {
        const int row = 4 * f + lane / 8;
#pragma unroll
        for (int m = 0; m < kProducts; ++m) {
          const int plane = 2 * m + (lane >> 2 & 1);
          words[f][m] = row < rows && plane < kPlanes ? word(row * kWords + 4 * plane + (lane & 3)) : 0;
        }
      }
    }
  }
  __device__ void clear() {
#pragma unroll
    for (auto& four : words) {
#pragma unroll
      for (uint32_t& word : four) word = 0;
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
#pragma unroll
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
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] += c[2 * i] * even + c[2 * i + 1] * odd;
      }
    }
  }
};

/// The units of a warp that come next: batch after batch, in a batch unit after unit, of a unit tile after tile.
struct UnitCursor {
  const SignWeights& weights;
  const int end, batch, warp, lane;
  int first, tiles, tile, unit;  // `tiles` of the batch
  const uint4* at;

  __device__ UnitCursor(const SignWeights& w, int begin, int end_, int batch_, int warp_, int lane_)
      : weights(w), end(warp_ < w.units ? end_ : begin), batch(batch_), warp(warp_), lane(lane_), first(begin),
        tiles(min(batch_, end_ - begin)), tile(0), unit(warp_) {
    find();
  }
  __device__ bool done() const { return first >= end; }
  __device__ void next() {
    at += weights.units * 32;
    if (++tile < tiles) return;
    tile = 0;
    unit += kWarps;
    if (unit >= weights.units) {
      unit = warp;
      first += batch;
      tiles = min(batch, end - first);
    }
    find();
  }

 private:
  __device__ void find() {
    at = weights.words + (static_cast<size_t>(first) * static_cast<size_t>(weights.units) + static_cast<size_t>(unit)) * 32 +
         lane;
  }
};

/// The exact sums of a unit of a tile, into the place of its two slices.
template <int Bits, int Rows>
__device__ inline void multiply_unit(const uint4& words, const Planes<Bits, Rows> (&planes)[2], int32_t* to, int lane) {
  if constexpr (Rows == 1) {
    // Both slices' sums of both rows, shared out in the quad: bit 0 of the lane chooses the row, bit 1 the slice.
    int part[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      int sum[2];
      planes[s].multiply(s == 0 ? words.x : words.z, s == 0 ? words.y : words.w, 0, lane, sum);
      const int give = lane & 1 ? sum[0] : sum[1], keep = lane & 1 ? sum[1] : sum[0];
      part[s] = keep + __shfl_xor_sync(kAllLanes, give, 1);
    }
    const int give = lane & 2 ? part[0] : part[1], keep = lane & 2 ? part[1] : part[0];
    to[(lane >> 1 & 1) * 16 + (lane & 1) * 8 + lane / 4] = keep + __shfl_xor_sync(kAllLanes, give, 2);
  } else {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int f = 0; f < Rows / 4; ++f) {
        int sum[2];
        planes[s].multiply(s == 0 ? words.x : words.z, s == 0 ? words.y : words.w, f, lane, sum);
        int32_t* row = to + s * kSliceSums<Rows> + (4 * f + (lane & 3)) * 24 + lane / 4;
        row[0] = sum[0];
        row[8] = sum[1];
      }
    }
  }
}

template <int Bits, int Rows, Epilogue E, bool Normed>
__global__ void __launch_bounds__(kThreads, Rows == 1 ? 2 : 1) multiply_planes_kernel(PlanesWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using P = Planes<Bits, Rows>;
  const SignWeights& w = work.weights;
  const PlanesShared<Bits, Rows> layout(w.units, work.batch, Normed);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slices = 2 * w.units, groups = Bits == 1 ? slices : (slices + 1) / 2;
  auto* ring = reinterpret_cast<uint4*>(shared) + warp * kRing * 32 + lane;
  auto* activation_scales = reinterpret_cast<float*>(shared + layout.activations);
  auto* activation_sums = reinterpret_cast<int32_t*>(activation_scales + groups * Rows);
  auto* planes_shared = reinterpret_cast<uint32_t*>(shared + layout.planes);
  auto* swiglu_values = reinterpret_cast<float*>(shared + layout.swiglu);

  // A stretch of tiles for each block.
  const auto stretch = [&](int block) {
    if constexpr (E == Epilogue::kSwiglu) {
      if (work.next.data != nullptr) return min(block * kQuantizedTiles, work.tiles);
    }
    return static_cast<int>(static_cast<int64_t>(work.tiles) * block / static_cast<int>(gridDim.x));
  };
  const int begin = stretch(static_cast<int>(blockIdx.x)), end = stretch(static_cast<int>(blockIdx.x) + 1);
  start_successor();

  UnitCursor ahead(w, begin, end, work.batch, warp, lane);
  unsigned ring_in = 0;
  const auto fetch = [&] {
    if (!ahead.done()) {
      copy_async(ring + ring_in % kRing * 32, ahead.at);
      ahead.next();
    }
    ++ring_in;
    commit_copies();
  };
  const auto fetch_scales = [&](int first, int which) {  // of a batch
    const int chunks = max(0, min(work.batch, end - first)) * w.units * 4;  // of 16 bytes
    const auto* from = reinterpret_cast<const uint8_t*>(w.scales) +
                       static_cast<size_t>(first) * static_cast<size_t>(w.units) * 64;
    unsigned char* to = shared + layout.scales + static_cast<size_t>(which) * layout.batch_scales;
    for (int i = thread; i < chunks; i += kThreads) copy_async(to + i * 16, from + i * 16);
  };
  fetch_scales(begin, 0);
  for (int i = 0; i < kRing - 1; ++i) fetch();

  P next_planes[2];
  const auto load_planes = [&](int unit) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int slice = 2 * unit + s;
      if (slice >= work.slices) {  // its weights are nothing's
        next_planes[s].clear();
      } else if constexpr (Normed) {
        next_planes[s].template load<true>(planes_shared + slice * P::kWords, 1, lane);
      } else {
        next_planes[s].template load<false>(
            reinterpret_cast<const uint32_t*>(work.in.data) +
                static_cast<size_t>(slice) * static_cast<size_t>(work.in.rows) * P::kWords,
            work.rows, lane);
      }
    }
  };
  if constexpr (Normed) {
    BlockPreparation<kNormGroups> preparation(work.norm, work.groups * kGroup);
    wait_for_predecessor();
    const Quantized out{Bits == 1 ? QuantizedLayout::kBits1 : QuantizedLayout::kBits2, 1,
                        reinterpret_cast<uint8_t*>(planes_shared), activation_scales, activation_sums};
    preparation.run(work.step, work.normed.data, 0, blockIdx.x == 0,
                    reinterpret_cast<float*>(shared + layout.squares), out);
    __syncthreads();
    load_planes(warp);
  } else {
    wait_for_predecessor();
    load_planes(warp);
    for (int i = thread; i < work.groups * Rows; i += kThreads) {
      const int group = i / Rows, row = i % Rows;
      const auto rows = static_cast<size_t>(work.in.rows), at = static_cast<size_t>(group) * rows;
      if (row >= work.rows) continue;
      activation_scales[i] = __ldcg(work.in.scales + at + static_cast<size_t>(row));
      for (int half = 0; half < 2; ++half) {
        activation_sums[(2 * group + half) * Rows + row] =
            __ldcg(work.in.sums + 2 * at + static_cast<size_t>(half) * rows + static_cast<size_t>(row));
      }
    }
  }

  unsigned ring_out = 0;
  int which = 0;
  for (int first = begin; first < end; first += work.batch, which ^= 1) {
    const int tiles = min(work.batch, end - first);
    auto* sums = reinterpret_cast<int32_t*>(shared + layout.sums + static_cast<size_t>(which) * layout.batch_sums);
    fetch_scales(first + work.batch, which ^ 1);
    commit_copies();
    int items = 0;
    for (int unit = warp; unit < w.units; unit += kWarps) {
      P planes[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) planes[s] = next_planes[s];
      const bool more = first + work.batch < end;
      if (unit + kWarps < w.units) {
        load_planes(unit + kWarps);
      } else if (more && w.units > kWarps) {
        load_planes(warp);
      }
      int32_t* to = sums + static_cast<size_t>(2 * unit) * kSliceSums<Rows>;
      items += tiles;
      int tile = 0;
      for (; tile + 2 <= tiles; tile += 2) {
        wait_copies<kRing - 3>();
        const uint4 a = ring[ring_out % kRing * 32], b = ring[(ring_out + 1) % kRing * 32];
        ring_out += 2;
        fetch();
        fetch();
        multiply_unit(a, planes, to, lane);
        multiply_unit(b, planes, to + layout.tile_sums, lane);
        to += 2 * layout.tile_sums;
      }
      if (tile < tiles) {
        wait_copies<kRing - 2>();
        const uint4 a = ring[ring_out++ % kRing * 32];
        fetch();
        multiply_unit(a, planes, to, lane);
      }
    }
    // This batch's scales: they were asked for before what is on the way now, but for a short batch.
    if (first == begin || items < kRing) wait_copies<0>();
    __syncthreads();

    // Rows i and i + 8 of a tile, for a row of the step: slices ascending. The next batch writes the other sums.
    const auto* scales =
        reinterpret_cast<const uint2*>(shared + layout.scales + static_cast<size_t>(which) * layout.batch_scales);
    for (int item = thread; item < tiles * 8 * work.rows; item += kThreads) {
      const int i = item & 7, at = item >> 3, row = Rows == 1 ? 0 : at / tiles, t = at - row * tiles;
      const int32_t* from = sums + static_cast<size_t>(t) * layout.tile_sums + (Rows == 1 ? 0 : 24 * row) + i;
      const uint2* tile_scales = scales + static_cast<size_t>(t) * static_cast<size_t>(w.units) * 8 + i;
      const int low_at = work.low_column(first + t, i), high_at = work.high_column(first + t, i);
      float* to = work.out.data + row * work.out.stride;
      float low_before = 0, high_before = 0;
      if constexpr (E == Epilogue::kAdd) {
        if (low_at >= 0) low_before = __ldcg(to + low_at);
        if (high_at >= 0) high_before = __ldcg(to + high_at);
      }
      float low = 0, high = 0;
#pragma unroll 8
      for (int s = 0; s < work.slices; ++s) {
        const uint2 packed = tile_scales[s / 2 * 8];
        const uint32_t pair = s & 1 ? packed.y : packed.x;
        const float scale = activation_scales[(Bits == 1 ? s : s / 2) * Rows + row];
        const int sum = Bits == 1 ? activation_sums[2 * s * Rows + row] + activation_sums[(2 * s + 1) * Rows + row]
                                  : activation_sums[s * Rows + row];
        const int32_t a = from[s * kSliceSums<Rows>], b = from[s * kSliceSums<Rows> + 8];
        low = __fmaf_rn(static_cast<float>((Bits == 1 ? 2 * a : a) - sum), __fmul_rn(half_bits_to_float(pair), scale),
                        low);
        high = __fmaf_rn(static_cast<float>((Bits == 1 ? 2 * b : b) - sum),
                         __fmul_rn(half_bits_to_float(pair >> 16), scale), high);
      }
      if constexpr (E == Epilogue::kSwiglu) {
        const float value = silu(low) * high;
        if (low_at >= 0 && work.out.data != nullptr) to[low_at] = value;
        if (work.next.data != nullptr)
          swiglu_values[row * kGroup + 8 * (first + t - begin) + i] = low_at >= 0 ? value : 0;
      } else {
        if (low_at >= 0) to[low_at] = E == Epilogue::kAdd ? low_before + low : low;
        if (high_at >= 0) to[high_at] = E == Epilogue::kAdd ? high_before + high : high;
      }
    }
  }
  if constexpr (E == Epilogue::kSwiglu) {
    if (work.next.data == nullptr) return;
    __syncthreads();
    for (int row = warp; row < work.rows; row += kWarps) {
      float x[4];
      for (int t = 0; t < 4; ++t) x[t] = swiglu_values[row * kGroup + group_column(lane, t)];
      if (!quantize_lanes(work.next, row, static_cast<int>(blockIdx.x), x) && lane == 0 &&
          row < (work.norm.outputs ? work.step.counts->outputs : work.step.counts->rows))
        report_bad(work.step, work.next_op, row);
    }
  }
}

template <int Bits, int Rows, Epilogue E, bool Normed>
void launch_planes(PlanesWork work, int multiprocessors, cudaStream_t stream) {
  const bool quantizes = E == Epilogue::kSwiglu && work.next.data != nullptr;
  const int blocks = quantizes ? (work.tiles + kQuantizedTiles - 1) / kQuantizedTiles
                               : std::min(work.tiles, multiprocessors);
  work.batch = quantizes ? kQuantizedTiles : (work.tiles + blocks - 1) / blocks;
  const auto shared = [&] { return PlanesShared<Bits, Rows>(work.weights.units, work.batch, Normed); };
  while (work.batch > 1 && shared().batch_sums > kSumBytes / 2) --work.batch;
  static const bool allowed = [] {
    allow_shared(multiply_planes_kernel<Bits, Rows, E, Normed>, 227 << 10);
    return true;
  }();
  static_cast<void>(allowed);
  launch(multiply_planes_kernel<Bits, Rows, E, Normed>,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared().total, true}, stream, work);
}

template <int Bits, int Rows, Epilogue E>
void choose_norm(const PlanesWork& work, bool normed, int multiprocessors, cudaStream_t stream) {
  if constexpr (Rows == 1 && E != Epilogue::kAdd) {
    if (normed) return launch_planes<Bits, Rows, E, true>(work, multiprocessors, stream);
  }
  launch_planes<Bits, Rows, E, false>(work, multiprocessors, stream);
}

template <int Bits, int Rows>
void choose_epilogue(const PlanesWork& work, bool normed, Epilogue epilogue, int multiprocessors,
                     cudaStream_t stream) {
  switch (epilogue) {
    case Epilogue::kStore:
      return choose_norm<Bits, Rows, Epilogue::kStore>(work, normed, multiprocessors, stream);
    case Epilogue::kAdd:
      return choose_norm<Bits, Rows, Epilogue::kAdd>(work, normed, multiprocessors, stream);
    case Epilogue::kSwiglu:
      return choose_norm<Bits, Rows, Epilogue::kSwiglu>(work, normed, multiprocessors, stream);
  }
}

}  // namespace

bool takes_norm(const MatrixRun& run, int rows) {
  return rows == 1 && run.columns % kGroup == 0 && run.columns / kGroup <= kNormGroups * kWarps;
}

bool quantizes_swiglu(const MatrixRun& run, int rows) {
  return rows <= kPlaneRows && run.interleaved;
}

void multiply_planes(const StepView& step, const SignProduct& product, int multiprocessors, cudaStream_t stream) {
  const bool normed = product.norm.norm.weights != nullptr;
  const PlanesWork work{work_of(product),   step, product.normed, product.norm, product.next, product.next_op,
                        static_cast<int32_t>((product.run->rows + 15) / 16), 0};
  const auto choose_rows = [&]<int Bits>() {
    if (product.rows == 1) return choose_epilogue<Bits, 1>(work, normed, product.epilogue, multiprocessors, stream);
    if (product.rows <= 4) return choose_epilogue<Bits, 4>(work, false, product.epilogue, multiprocessors, stream);
    choose_epilogue<Bits, 8>(work, false, product.epilogue, multiprocessors, stream);
  };
  product.run->sign.bits == 1 ? choose_rows.template operator()<1>() : choose_rows.template operator()<2>();
}

}  // namespace niwaki::cuda
