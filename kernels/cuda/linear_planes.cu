// Few rows of the step: bits of weights times bit planes of activations, counted by the matrix instruction of
// one-bit operands.
//
// A block has a stretch of pairs of tiles, and goes through them in batches. Each of its warps takes every
// sixteenth unit, whose words it asks for some pairs ahead. The counts of a slice, combined as far as a lane
// has them, wait in shared memory until all slices of the batch are there; then they are scaled and added,
// slices ascending.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kAhead = 3;                 // pairs of units on the way to a warp
constexpr size_t kBatchBytes = 64 << 10;  // that the sums of a batch may take, if it is not a single pair

/// Of a launch.
struct PlanesWork : SignWork {
  int32_t tiles;  // of the run, padded to an even number
  int32_t batch;  // tiles
  bool several;   // batches, and room for the sums of two
};

/// Rows of the step by fours; one row alone takes as much room.
template <int Rows>
constexpr int kFours = (Rows + 3) / 4;

/// Shared memory of a block, in this order.
///
///   sums         [tile][four][slice][16 rows][4]: of a row of weights, for each of four rows of the step; or
///   of one row, in four parts
///                that are to be added as 1, 4, 16 and 64 times; twice, for the batch at hand and the one
///                before
///   scales       [tile][unit][8], twice
template <int Bits, int Rows>
struct PlanesShared {
  size_t tile_sums;  // ints
  size_t batch_sums, batch_scales, sums, scales, activations, total;

  __host__ __device__ PlanesShared(int units, int batch, bool several) {
    const auto slices = static_cast<size_t>(2 * units), groups = Bits == 1 ? slices : (slices + 1) / 2;
    tile_sums = slices * 64 * kFours<Rows>;
    batch_sums = tile_sums * sizeof(int32_t) * static_cast<size_t>(batch);
    batch_scales = static_cast<size_t>(batch) * static_cast<size_t>(units) * 64;
    size_t end = 0;
    const auto take = [&end](size_t bytes) {
      const size_t at = end;
      end += (bytes + 15) / 16 * 16;
      return at;
    };
    sums = take((several ? 2 : 1) * batch_sums);
    scales = take((several ? 2 : 1) * batch_scales);
    activations = take(groups * Rows * 12);  // scales, then sums as Quantized has them
    total = end;
  }
};

/// The planes of one row of the step (Rows == 1), which the lanes of a quad share, or of four, of which each
/// lane of a quad has one: the operands of a slice.
template <int Bits, int Rows>
struct Planes {
  static constexpr int kPlanes = Bits == 1 ? kBits1Planes : kBits2Planes;
  static constexpr int kWords = Bits == 1 ? kBits1Words : kBits2Words;
  static constexpr int kProducts = Rows == 1 ? 2 : (kPlanes + 1) / 2;
  uint32_t words[kFours<Rows>][kProducts];

  /// `data`: of the slice, [row][kWords].
  __device__ void load(const uint32_t* data, int rows, int lane) {
    const auto word = [data](int at) { return __ldcg(data + at); };
    if constexpr (Rows == 1) {
      words[0][0] = word(lane);
      words[0][1] = lane < 4 * (kPlanes - 8) ? word(32 + lane) : 0;
    } else {
      // Column lane / 4 of a product is plane 2 m + (column & 1) of row column / 2.
#pragma unroll
      for (int f = 0; f < kFours<Rows>; ++f) {
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

  /// The sums of weight rows lane / 4 and lane / 4 + 8 for the lane's row; with Rows == 1 the lane's part of
  /// them, which is to be multiplied by 4^(lane & 3).
  __device__ void multiply(uint32_t first, uint32_t second, int f, int lane, int (&sum)[2]) const {
    const uint32_t a[2] = {first, second};
    if constexpr (Rows == 1) {
      int c[4], e[4];
      mma_bits(c, a, words[0][0]);
      mma_bits(e, a, words[0][1]);
      // Planes from 8 on are with the first lane, and plane 10, the sign of weights of two bits, with the
      // second.
      const int even = Bits == 2 && (lane & 3) != 0 ? -256 : 256, odd = Bits == 1 ? -512 : 512;
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] = c[2 * i] + 2 * c[2 * i + 1] + e[2 * i] * even + e[2 * i + 1] * odd;
    } else {
      sum[0] = sum[1] = 0;
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        int c[4];
        mma_bits(c, a, words[f][m]);
        const bool last = m == kProducts - 1;
        const int even = (last && Bits == 2 ? -1 : 1) * (1 << 2 * m), odd = (last ? -2 : 2) * (1 << 2 * m);
#pragma unroll
        for (int i = 0; i < 2; ++i) sum[i] += c[2 * i] * even + c[2 * i + 1] * odd;
      }
    }
  }
};

/// The pairs of units of a warp that come next: batch after batch, in a batch unit after unit, of a unit pair
/// after pair of tiles.
struct UnitCursor {
  const SignWeights& weights;
  const int end, batch, warp, lane;
  int first, last, tile, unit;  // the batch has tiles first .. last - 1
  const uint4* at;

  __device__ UnitCursor(const SignWeights& w, int begin, int end_, int batch_, int warp_, int lane_)
      : weights(w),
        end(warp_ < w.units ? end_ : begin),
        batch(batch_),
        warp(warp_),
        lane(lane_),
        first(begin),
        last(min(begin + batch_, end_)),
        tile(begin),
        unit(warp_) {
    find();
  }
  __device__ bool done() const { return first >= end; }
  __device__ void next() {
    tile += 2;
    if (tile < last) {
      at += 64;
      if (tile % 8 == 0) find();
      return;
    }
    unit += kWarps;
    if (unit >= weights.units) {
      unit = warp;
      first += batch;
      last = min(first + batch, end);
    }
    tile = first;
    find();
  }

 private:
  __device__ void find() { at = weights.words + weights.unit_index(tile, unit) * 32 + lane; }
};

template <int Bits, int Rows, Epilogue E>
__global__ void __launch_bounds__(kThreads, 1) multiply_planes_kernel(PlanesWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using P = Planes<Bits, Rows>;
  const SignWeights& w = work.weights;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slices = 2 * w.units, groups = Bits == 1 ? slices : (slices + 1) / 2;

  // A stretch of pairs of tiles for each block.
  const auto stretch = [&](int block) {
    return 2 * static_cast<int>(static_cast<int64_t>(work.tiles / 2) * block / static_cast<int>(gridDim.x));
  };
  const int begin = stretch(static_cast<int>(blockIdx.x)), end = stretch(static_cast<int>(blockIdx.x) + 1);
  const bool several = work.several;
  const PlanesShared<Bits, Rows> layout(w.units, work.batch, several);
  auto* activation_scales = reinterpret_cast<float*>(shared + layout.activations);
  auto* activation_sums = reinterpret_cast<int32_t*>(activation_scales + groups * Rows);
  start_successor();

  UnitCursor ahead(w, begin, end, work.batch, warp, lane);
  uint4 ring[kAhead][2];
  const auto fetch = [&](uint4(&pair)[2]) {
    if (ahead.done()) return;
    pair[0] = load_streaming(ahead.at);
    pair[1] = load_streaming(ahead.at + 32);
    ahead.next();
  };
#pragma unroll
  for (auto& pair : ring) fetch(pair);
  const auto fetch_scales = [&](int first, int which) {                     // of a batch
    const int chunks = max(0, min(work.batch, end - first)) * w.units * 4;  // of 16 bytes
    unsigned char* to = shared + layout.scales + static_cast<size_t>(which) * layout.batch_scales;
    for (int i = thread; i < chunks; i += kThreads) {
      const int unit = i / 4 % w.units, tile = i / 4 / w.units;
      copy_async(to + i * 16, reinterpret_cast<const uint8_t*>(w.scales) +
                                  w.unit_index(first + tile, unit) * 64 + static_cast<size_t>(i % 4 * 16));
    }
    commit_copies();
  };
  fetch_scales(begin, 0);

  P next_planes[2];
  const auto load_planes = [&](int unit) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int slice = 2 * unit + s;
      if (slice >= work.slices) {  // its weights are nothing's
        next_planes[s].clear();
      } else {
        next_planes[s].load(reinterpret_cast<const uint32_t*>(work.in.data) +
                                static_cast<size_t>(slice) * static_cast<size_t>(work.in.rows) * P::kWords,
                            work.rows, lane);
      }
    }
  };
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

  int which = 0;
  int turn = 0;  // of the ring
  for (int first = begin; first < end; first += work.batch, which ^= several) {
    const int tiles = min(work.batch, end - first);
    auto* sums =
        reinterpret_cast<int32_t*>(shared + layout.sums + static_cast<size_t>(which) * layout.batch_sums);
    for (int unit = warp; unit < w.units; unit += kWarps) {
      P planes[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) planes[s] = next_planes[s];
      if (unit + kWarps < w.units) {
        load_planes(unit + kWarps);
      } else if (first + work.batch < end && w.units > kWarps) {
        load_planes(warp);
      }
      int32_t* to = sums + 2 * unit * 64 + lane / 4 * 4 + (lane & 3);
      const auto multiply = [&](const uint4& words) {  // a tile
#pragma unroll
        for (int f = 0; f < kFours<Rows>; ++f) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            int sum[2];
            planes[s].multiply(s == 0 ? words.x : words.z, s == 0 ? words.y : words.w, f, lane, sum);
            to[(f * slices + s) * 64] = sum[0];
            to[(f * slices + s) * 64 + 32] = sum[1];
          }
        }
        to += layout.tile_sums;
      };
      const auto take = [&](uint4(&pair)[2]) {
        const uint4 a = pair[0], b = pair[1];
        fetch(pair);
        multiply(a);
        multiply(b);
      };
      for (int tile = 0; tile < tiles; tile += 2) {
        // The ring's registers must be known when this is compiled.
        static_assert(kAhead == 3);
        turn == 0 ? take(ring[0]) : turn == 1 ? take(ring[1]) : take(ring[2]);
        turn = turn == 2 ? 0 : turn + 1;
      }
    }
    wait_copies<0>();
    __syncthreads();
    if (several) fetch_scales(first + work.batch, which ^ 1);

    const auto* scales = reinterpret_cast<const uint2*>(shared + layout.scales +
                                                        static_cast<size_t>(which) * layout.batch_scales);
    const auto scale_of = [&](int tile, int slice, int row) {  // of a row of weights in its tile
      const uint2 packed = scales[(tile * w.units + slice / 2) * 8 + row % 8];
      const uint32_t pair = slice & 1 ? packed.y : packed.x;
      return half_bits_to_float(row < 8 ? pair : pair >> 16);
    };
    const auto sum_of = [&](int slice, int row) {  // of the activations of a row of the step
      return Bits == 1
                 ? activation_sums[2 * slice * Rows + row] + activation_sums[(2 * slice + 1) * Rows + row]
                 : activation_sums[slice * Rows + row];
    };
    if constexpr (Rows == 1) {
      // Sum and scale of every slice, in the place of the parts, by all threads.
      for (int i = thread; i < tiles * slices * 16; i += kThreads) {
        const int row = i % 16, slice = i / 16 % slices, tile = i / 16 / slices;
        if (slice >= work.slices) continue;
        int4* at =
            reinterpret_cast<int4*>(sums + static_cast<size_t>(tile) * layout.tile_sums) + slice * 16 + row;
        const int4 parts = *at;
        const int count = parts.x + 4 * parts.y + 16 * parts.z + 64 * parts.w;
        const float scale = activation_scales[Bits == 1 ? slice : slice / 2];
        *reinterpret_cast<float2*>(at) =
            make_float2(static_cast<float>((Bits == 1 ? 2 * count : count) - sum_of(slice, 0)),
                        __fmul_rn(scale_of(tile, slice, row), scale));
      }
      __syncthreads();
    }
    // A thread has a row of weights and one of the step.
    for (int item = thread; item < tiles * 16 * (Rows == 1 ? 1 : work.rows); item += kThreads) {
      const int row = item % 16, tile = Rows == 1 ? item / 16 : item / 16 % tiles;
      const int step_row = Rows == 1 ? 0 : item / 16 / tiles;
      const int column =
          row < 8 ? work.low_column(first + tile, row) : work.high_column(first + tile, row - 8);
      float* to = work.out.data + step_row * work.out.stride + column;
      float before = 0;
      if constexpr (E == Epilogue::kAdd) {
        if (column >= 0) before = __ldcg(to);
      }
      const int32_t* from =
          sums + static_cast<size_t>(tile) * layout.tile_sums + step_row / 4 * slices * 64 + row * 4;
      float y = 0;
#pragma unroll 8
      for (int s = 0; s < work.slices; ++s) {
        if constexpr (Rows == 1) {
          const float2 product = *reinterpret_cast<const float2*>(from + s * 64);
          y = __fmaf_rn(product.x, product.y, y);
        } else {
          const int count = from[s * 64 + step_row % 4];
          const float scale = activation_scales[(Bits == 1 ? s : s / 2) * Rows + step_row];
          y = __fmaf_rn(static_cast<float>((Bits == 1 ? 2 * count : count) - sum_of(s, step_row)),
                        __fmul_rn(scale_of(tile, s, row), scale), y);
        }
      }
      if constexpr (E == Epilogue::kSwiglu) {
        // Rows i and i + 8 of a tile are gate and up, with lanes eight apart.
        const float up = __shfl_xor_sync(0xffffu << (lane & 16), y, 8);
        if (row >= 8) continue;
        if (column >= 0) *to = silu(y) * up;
      } else if (column >= 0) {
        *to = E == Epilogue::kAdd ? before + y : y;
      }
    }
    if (!several && first + work.batch < end) {
      __syncthreads();
      fetch_scales(first + work.batch, 0);
    }
  }
}

template <int Bits, int Rows, Epilogue E>
void launch_planes(PlanesWork work, int multiprocessors, cudaStream_t stream) {
  const int blocks = std::min(work.tiles / 2, multiprocessors);
  const int most = 2 * ((work.tiles / 2 + blocks - 1) / blocks);
  const auto shared = [&] { return PlanesShared<Bits, Rows>(work.weights.units, work.batch, work.several); };
  work.batch = most;
  while (work.batch > 2 && shared().batch_sums > kBatchBytes) work.batch -= 2;
  work.several = work.batch < most && shared().batch_sums <= kBatchBytes;
  static const bool allowed = [] {
    allow_shared(multiply_planes_kernel<Bits, Rows, E>, 227 << 10);
    return true;
  }();
  static_cast<void>(allowed);
  launch(multiply_planes_kernel<Bits, Rows, E>,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared().total, true}, stream, work);
}

template <int Bits, int Rows>
void choose_epilogue(const PlanesWork& work, Epilogue epilogue, int multiprocessors, cudaStream_t stream) {
  switch (epilogue) {
    case Epilogue::kStore:
      return launch_planes<Bits, Rows, Epilogue::kStore>(work, multiprocessors, stream);
    case Epilogue::kAdd:
      return launch_planes<Bits, Rows, Epilogue::kAdd>(work, multiprocessors, stream);
    case Epilogue::kSwiglu:
      return launch_planes<Bits, Rows, Epilogue::kSwiglu>(work, multiprocessors, stream);
  }
}

}  // namespace

void multiply_planes(const SignProduct& product, int multiprocessors, cudaStream_t stream) {
  const PlanesWork work{work_of(product), static_cast<int32_t>((product.run->rows + 31) / 32 * 2), 0, false};
  const auto choose_rows = [&]<int Bits>() {
    if (product.rows == 1) return choose_epilogue<Bits, 1>(work, product.epilogue, multiprocessors, stream);
    if (product.rows <= 4) return choose_epilogue<Bits, 4>(work, product.epilogue, multiprocessors, stream);
    choose_epilogue<Bits, 8>(work, product.epilogue, multiprocessors, stream);
  };
  product.run->sign.bits == 1 ? choose_rows.template operator()<1>() : choose_rows.template operator()<2>();
}

}  // namespace niwaki::cuda
