// A few rows of the step: bits of weights times bit planes of activations, counted by the matrix instruction
// of one-bit operands.
//
// A block has a stretch of tiles, and goes through them in batches. Each of its warps takes every sixteenth
// unit of a tile, through a ring of its own in shared memory, some units ahead. The sum of a slice and its
// scale wait in shared memory until all slices of the batch are there; then they are added, slices ascending.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr size_t kBatchBytes = 64 << 10;  // that the sums of a batch may take, if it is not a single tile

/// Of a launch.
struct PlanesWork : SignWork {
  int32_t tiles;  // of the run
  int32_t batch;  // of tiles
  bool several;   // batches, and room for the sums of two
};

/// Rows of the step by fours.
template <int Rows>
constexpr int kFours = Rows / 4;

/// Units on the way to a warp, one of them at hand; each with its scales behind its words.
constexpr int kRing = 8;
constexpr int kUnitBytes = 512 + 64;
constexpr size_t kRingBytes = static_cast<size_t>(kWarps) * kRing * kUnitBytes;

/// Floats that wait for a tile and a slice: [step row][16 rows] of a sum and what it is to be multiplied by.
template <int Rows>
constexpr int kSliceFloats = 32 * Rows;

/// The planes of a slice that a lane needs: of four rows of the step each lane of a quad has one.
template <int Bits, int Rows>
struct Planes {
  using Record = PlanesRecord<Bits>;
  static constexpr int kPlanes = Record::kPlanes, kWords = Record::kWords;
  static constexpr int kProducts = (kPlanes + 1) / 2;
  uint32_t words[kFours<Rows>][kProducts];

  __device__ void load(const Quantized& in, int slice, int slices, int rows, int lane) {
    const auto all_rows = static_cast<size_t>(in.rows);
    const auto* data =
        reinterpret_cast<const uint32_t*>(in.data) + static_cast<size_t>(slice) * all_rows * kWords;
    const bool there = slice < slices;  // the weights of the last slice may be nothing's
#pragma unroll
    for (int f = 0; f < kFours<Rows>; ++f) {
      // Column lane / 4 of a product is plane 2 m + (column & 1) of row column / 2.
#pragma unroll
      for (int m = 0; m < kProducts; ++m) {
        const int row = 4 * f + lane / 8, plane = 2 * m + (lane >> 2 & 1);
        words[f][m] =
            there && row < rows && plane < kPlanes ? __ldcg(data + row * kWords + 4 * plane + (lane & 3)) : 0;
      }
    }
  }

  /// The sums of weight rows lane / 4 and lane / 4 + 8 for the lane's row.
  __device__ void multiply(uint32_t first, uint32_t second, int f, int (&sum)[2]) const {
    const uint32_t a[2] = {first, second};
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
};

/// The units of a warp that come next: batch after batch, in a batch unit after unit, of a unit tile after
/// tile.
struct UnitCursor {
  const SignWeights& weights;
  const int end, batch, warp;
  int first, last, tile, unit;  // the batch has tiles first .. last - 1

  __device__ UnitCursor(const SignWeights& w, int begin, int end_, int batch_, int warp_)
      : weights(w),
        end(warp_ < w.units ? end_ : begin),
        batch(batch_),
        warp(warp_),
        first(begin),
        last(min(begin + batch_, end_)),
        tile(begin),
        unit(warp_) {}
  __device__ bool done() const { return first >= end; }
  __device__ void next() {
    if (++tile < last) return;
    unit += kWarps;
    if (unit >= weights.units) {
      unit = warp;
      first += batch;
      last = min(first + batch, end);
    }
    tile = first;
  }
};

template <int Bits, int Rows, Epilogue E>
__global__ void __launch_bounds__(kThreads, 1) multiply_planes_kernel(PlanesWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using P = Planes<Bits, Rows>;
  const SignWeights& w = work.weights;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int slices = 2 * w.units;
  // A stretch of tiles for each block.
  const auto stretch = [&](int block) {
    return static_cast<int>(static_cast<int64_t>(work.tiles) * block / static_cast<int>(gridDim.x));
  };
  const int begin = stretch(static_cast<int>(blockIdx.x)), end = stretch(static_cast<int>(blockIdx.x) + 1);
  unsigned char* ring = shared + warp * kRing * kUnitBytes;
  auto* sums = reinterpret_cast<float*>(shared + kRingBytes);
  const int tile_floats = slices * kSliceFloats<Rows>;
  auto* slice_scales = sums + static_cast<size_t>(work.several ? 2 : 1) * static_cast<size_t>(work.batch) *
                                  static_cast<size_t>(tile_floats);  // [slice][step row]
  auto* slice_sums =
      reinterpret_cast<int32_t*>(slice_scales + slices * Rows);  // of the activations, likewise
  start_successor();

  UnitCursor ahead(w, begin, end, work.batch, warp);
  unsigned in = 0, out = 0;
  const auto fetch = [&] {
    if (!ahead.done()) {
      unsigned char* to = ring + in % kRing * kUnitBytes;
      const size_t unit = w.unit_index(ahead.tile, ahead.unit);
      copy_async(to + lane * 16, w.words + unit * 32 + static_cast<size_t>(lane));
      if (lane < 4)
        copy_async(to + 512 + lane * 16,
                   reinterpret_cast<const uint4*>(w.scales) + unit * 4 + static_cast<size_t>(lane));
      ahead.next();
    }
    ++in;
    commit_copies();
  };
#pragma unroll 1
  for (int i = 0; i < kRing - 1; ++i) fetch();

  P next_planes[2];
  const auto load_planes = [&](int unit) {
#pragma unroll
    for (int s = 0; s < 2; ++s) next_planes[s].load(work.in, 2 * unit + s, work.slices, work.rows, lane);
  };
  wait_for_predecessor();
  load_planes(warp);
  // Scales and sums are asked for once by each block: all blocks want the same few lines.
  for (int i = thread; i < work.slices * Rows; i += kThreads) {
    const int slice = i / Rows, row = i % Rows;
    using Record = PlanesRecord<Bits>;
    const auto* record =
        reinterpret_cast<const uint32_t*>(work.in.data) +
        (static_cast<size_t>(slice) * static_cast<size_t>(work.in.rows) + static_cast<size_t>(row)) *
            Record::kWords;
    const bool there = row < work.rows;
    slice_scales[i] = there ? __uint_as_float(__ldcg(record + Record::kScale)) : 0;
    slice_sums[i] = there ? static_cast<int>(__ldcg(record + Record::kSum)) : 0;
  }
  for (int i = work.slices * Rows + thread; i < slices * Rows; i += kThreads)
    slice_scales[i] = slice_sums[i] = 0;
  __syncthreads();

  int which = 0;  // of two batches
  for (int first = begin; first < end; first += work.batch, which ^= work.several) {
    const int tiles = min(work.batch, end - first);
    float* batch_sums = sums + static_cast<size_t>(which) * static_cast<size_t>(work.batch) *
                                   static_cast<size_t>(tile_floats);
#pragma unroll 1
    for (int unit = warp; unit < w.units; unit += kWarps) {
      P planes[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) planes[s] = next_planes[s];
      if (unit + kWarps < w.units) {
        load_planes(unit + kWarps);
      } else if (first + work.batch < end && w.units > kWarps) {
        load_planes(warp);
      }
      auto* to = reinterpret_cast<float2*>(batch_sums + 2 * unit * kSliceFloats<Rows>);
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile, to += tile_floats / 2) {
        wait_copies<kRing - 2>();
        __syncwarp();  // the scales are other lanes' copies
        const unsigned char* slot = ring + out++ % kRing * kUnitBytes;
        const uint4 words = reinterpret_cast<const uint4*>(slot)[lane];
        const unsigned char* scales = slot + 512;
        const uint2 pairs = reinterpret_cast<const uint2*>(scales)[lane / 4];
        __syncwarp();
        fetch();
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const uint32_t pair = s == 0 ? pairs.x : pairs.y;
#pragma unroll
          for (int f = 0; f < kFours<Rows>; ++f) {
            int sum[2];
            planes[s].multiply(s == 0 ? words.x : words.z, s == 0 ? words.y : words.w, f, sum);
            float2* row = to + (s * Rows + 4 * f + (lane & 3)) * 16 + lane / 4;
            const int at = (2 * unit + s) * Rows + 4 * f + (lane & 3);
            const float activation_scale = slice_scales[at];
            const int activation_sum = slice_sums[at];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              row[8 * i] = make_float2(static_cast<float>((Bits == 1 ? 2 * sum[i] : sum[i]) - activation_sum),
                                       __fmul_rn(half_bits_to_float(pair >> 16 * i), activation_scale));
            }
          }
        }
      }
    }
    __syncthreads();

    // A thread has a row of weights and one of the step: slices ascending. The next batch may write other
    // sums meanwhile.
    for (int item = thread; item < tiles * 16 * work.rows; item += kThreads) {
      const int row = item % 16, tile = item / 16 % tiles, step_row = item / 16 / tiles;
      const int column =
          row < 8 ? work.low_column(first + tile, row) : work.high_column(first + tile, row - 8);
      float* to = work.out.data + step_row * work.out.stride + column;
      float before = 0;
      if constexpr (E == Epilogue::kAdd) {
        if (column >= 0) before = __ldcg(to);
      }
      const auto* from = reinterpret_cast<const float2*>(batch_sums + static_cast<size_t>(tile) *
                                                                          static_cast<size_t>(tile_floats)) +
                         step_row * 16 + row;
      float y = 0;
#pragma unroll 8
      for (int s = 0; s < work.slices; ++s) {
        const float2 product = from[s * (kSliceFloats<Rows> / 2)];
        y = __fmaf_rn(product.x, product.y, y);
      }
      if constexpr (E == Epilogue::kSwiglu) {
        // Rows i and i + 8 of a tile are gate and up, with lanes eight apart.
        const float up = __shfl_xor_sync(0xffffu << (lane & 16), y, 8);
        if (row < 8 && column >= 0) *to = silu(y) * up;
      } else if (column >= 0) {
        *to = E == Epilogue::kAdd ? before + y : y;
      }
    }
    if (!work.several && first + work.batch < end) __syncthreads();
  }
}

constexpr size_t kMostShared = 227 << 10;  // of a block

/// Shared memory of a block.
template <int Rows>
size_t shared_bytes(int units, int batches) {
  return kRingBytes + static_cast<size_t>(2 * units) *
                          (static_cast<size_t>(batches) * kSliceFloats<Rows> * sizeof(float) + Rows * 8);
}

template <int Bits, int Rows, Epilogue E>
void launch_planes(PlanesWork work, int multiprocessors, cudaStream_t stream) {
  const int blocks = std::min(work.tiles, multiprocessors);
  const int most = (work.tiles + blocks - 1) / blocks;
  const auto batch_bytes = [&] {
    return static_cast<size_t>(work.batch) * static_cast<size_t>(2 * work.weights.units) *
           kSliceFloats<Rows> * sizeof(float);
  };
  work.batch = most;
  while (work.batch > 1 && batch_bytes() > kBatchBytes) --work.batch;
  work.several = work.batch < most && batch_bytes() <= kBatchBytes;
  static OncePerGpu allowed;
  if (allowed.first()) allow_shared(multiply_planes_kernel<Bits, Rows, E>, kMostShared);
  const size_t shared = shared_bytes<Rows>(work.weights.units, (work.several ? 2 : 1) * work.batch);
  launch(multiply_planes_kernel<Bits, Rows, E>,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, true}, stream, work);
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
  PlanesWork work{work_of(product), static_cast<int32_t>((product.run->rows + 15) / 16), 0, false};
  const int units = work.weights.units;
  const auto choose_rows = [&]<int Bits>() {
    // All rows at once, but for very long rows of weights, whose sums do not fit so many times.
    for (int left = product.rows; left > 0;) {
      const int rows = left > 4 && shared_bytes<8>(units, 1) <= kMostShared   ? left
                       : left > 1 && shared_bytes<4>(units, 1) <= kMostShared ? std::min(left, 4)
                                                                              : 1;
      work.rows = rows;
      if (rows == 1) {
        SignProduct one = product;
        one.rows = 1;
        one.in = work.in;
        one.out = work.out;
        multiply_sign(one, multiprocessors, stream);
      } else if (rows <= 4) {
        choose_epilogue<Bits, 4>(work, product.epilogue, multiprocessors, stream);
      } else {
        choose_epilogue<Bits, 8>(work, product.epilogue, multiprocessors, stream);
      }
      left -= rows;
      work.in.data += static_cast<size_t>(rows) * PlanesRecord<Bits>::kWords * sizeof(uint32_t);
      work.out.data += rows * work.out.stride;
    }
  };
  product.run->sign.bits == 1 ? choose_rows.template operator()<1>() : choose_rows.template operator()<2>();
}

}  // namespace niwaki::cuda
