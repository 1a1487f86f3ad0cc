// One row of the step: bits of weights times its bit planes, as in linear_planes.cu, two tiles at a time.
//
// A block has a stretch of pairs of tiles, and goes through them in batches. Each of its warps takes every
// sixteenth unit of a pair, through a ring of its own in shared memory that it begins to fill before the
// kernels ahead have ended. What is not quantized yet each block quantizes for itself: that takes less time
// than one more kernel. A slice's sum and scale wait in shared memory until all slices of the batch are
// there; then they are added, slices ascending.
//
// Of a pair's unit there are four sums for each row of a tile: of slices 0 and 1 of the first tile and of the
// second. The one-bit instruction leaves the counts of planes 2 p and 2 p + 1 with lane p of each quad; as
// bytes they are one operand of an instruction that sums counts * 2^plane, and leaves sum p with lane p. The
// planes from 8 on are columns 2 p and 2 p + 1 of products that add up, so that their counts are with lane p
// at once.
#include <algorithm>

#include "cuda/linear_kernels.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kWordBytes = 1024, kPairBytes = kWordBytes + 128;  // of a pair's unit: words; with scales
constexpr size_t kRingBytes = 92 << 10, kBatchBytes = 32 << 10;  // that rings, and sums of a batch, may take
constexpr int kGroupPairs = 8;                                   // that give a group of SwiGLU's results

/// Of a launch.
struct RowWork : SignWork {
  // What is not quantized yet.
  const float* x;
  NormWeights norm;
  int32_t width, norm_op, op;  // operations as report_bad names them
  // What SwiGLU's results are quantized to.
  Quantized next;
  int32_t next_op;

  int32_t pairs;    // of tiles of the run
  int32_t stretch;  // pairs that blocks' stretches are multiples of
  int32_t batch;    // of pairs
  int32_t ring;     // units of pairs that a warp has room for
  bool several;     // batches, and room for the sums of two
};

/// Where things are in shared memory, in bytes.
struct RowLayout {
  uint32_t barriers, sums, scales, slice_sums, squares, planes, values, bytes;

  __host__ __device__ RowLayout(const RowWork& work, int bits, bool floats, bool quantizes) {
    uint32_t end = static_cast<uint32_t>(kWarps * work.ring) * kPairBytes;
    const auto take = [&end](uint32_t size) {
      const uint32_t at = end;
      end += (size + 15) / 16 * 16;
      return at;
    };
    const auto groups = static_cast<uint32_t>(bits == 1 ? 2 * work.weights.units : work.weights.units);
    barriers = take(static_cast<uint32_t>(kWarps * work.ring) * 8);
    sums =
        take(static_cast<uint32_t>((work.several ? 2 : 1) * work.batch * 2 * 2 * work.weights.units) * 128);
    scales = take(groups * 4);
    slice_sums = take(groups * 8);  // [group][2]
    squares = take(floats ? groups * 4 : 0);
    planes = take(floats ? groups * (bits == 1 ? kBits1Words : 2 * kBits2Words) * 4 : 0);
    values = take(quantizes ? kGroup * 4 : 0);
    bytes = end;
  }
};

/// Planes of a slice as a lane has them: word lane % 4 of planes lane / 4, 8 + lane / 4 % 2, and 10.
template <int Bits>
struct SlicePlanes {
  uint32_t low, high, top;

  template <bool kShared>
  __device__ void load(const uint32_t* words, int lane) {
    const auto word = [&](int i) { return kShared ? words[i] : __ldcg(words + i); };
    low = word(lane);
    high = word(32 + (lane & 7));
    if constexpr (Bits == 2) top = word(40 + (lane & 3));
  }
};

/// The counts of rows `which` and `which` + 8 of two slices as bytes.
__device__ inline uint32_t count_bytes(const int (&first)[4], const int (&second)[4], int which) {
  return static_cast<uint32_t>(first[which] + first[which + 1] * (1 << 8) + second[which] * (1 << 16) +
                               second[which + 1] * (1 << 24));
}

template <int Bits, bool kFloats, Epilogue E, bool kQuantizes>
__global__ void __launch_bounds__(kThreads, 2) multiply_row_kernel(StepView step, RowWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  constexpr int kWords = Bits == 1 ? kBits1Words : kBits2Words;
  const SignWeights& w = work.weights;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int quad = lane / 4, part = lane % 4;
  const int slices = 2 * w.units;
  const RowLayout at(work, Bits, kFloats, kQuantizes);
  auto* scales = reinterpret_cast<float*>(shared + at.scales);
  auto* slice_sums = reinterpret_cast<int32_t*>(shared + at.slice_sums);
  start_successor();

  const auto stretch_begin = [&](unsigned block) {
    const int64_t stretches = (work.pairs + work.stretch - 1) / work.stretch;
    return min(work.pairs, static_cast<int>(stretches * block / gridDim.x) * work.stretch);
  };
  const int begin = stretch_begin(blockIdx.x), end = stretch_begin(blockIdx.x + 1);
  // With fewer units than warps several warps have the same unit, of different pairs.
  const int together = min(w.units, kWarps), apart = kWarps / together;
  const int first_unit = warp % together, first_pair = warp / together;
  const bool works = first_pair < apart;

  // The ring: its places are filled in the order of the loops below.
  unsigned char* const ring = shared + warp * work.ring * kPairBytes;
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + at.barriers) + warp * work.ring;
  if (lane == 0) {
    for (int i = 0; i < work.ring; ++i) init_barrier(barriers + i, 1);
    fence_barriers();
  }
  int ahead_first = begin, ahead_unit = first_unit, ahead_pair = begin + first_pair;
  const auto fetch = [&](int place) {  // by the first lane
    const auto settle = [&] {          // to the next that there is
      while (ahead_pair >= min(ahead_first + work.batch, end)) {
        ahead_unit += kWarps;
        if (ahead_unit >= w.units) {
          ahead_unit = first_unit;
          ahead_first += work.batch;
          if (ahead_first >= end) return false;
        }
        ahead_pair = ahead_first + first_pair;
      }
      return true;
    };
    if (ahead_first >= end || !settle()) return;
    const size_t unit = w.unit_index(2 * ahead_pair, ahead_unit);
    unsigned char* to = ring + place * kPairBytes;
    arrive_expecting(barriers + place, kPairBytes);
    copy_bulk(to, w.words + unit * 32, kWordBytes, barriers + place);
    copy_bulk(to + kWordBytes, w.scales + unit * 8, kPairBytes - kWordBytes, barriers + place);
    ahead_pair += apart;
  };
  if (works && lane == 0) {
    for (int i = 0; i < work.ring; ++i) fetch(i);
  }
  __syncwarp();

  // The row.
  [[maybe_unused]] float* const squares = reinterpret_cast<float*>(shared + at.squares);
  [[maybe_unused]] auto* const planes = reinterpret_cast<uint32_t*>(shared + at.planes);
  SlicePlanes<Bits> next[2];
  const auto load_planes = [&](int unit) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int slice = 2 * unit + s;
      if constexpr (kFloats) {
        next[s].template load<true>(planes + slice * kWords, lane);
      } else {
        next[s] = {};
        if (slice < work.slices) {
          next[s].template load<false>(
              reinterpret_cast<const uint32_t*>(work.in.data) +
                  static_cast<size_t>(slice) * static_cast<size_t>(work.in.rows) * kWords,
              lane);
        }
      }
    }
  };
  if constexpr (kFloats) {
    const Quantized own{Bits == 1 ? QuantizedLayout::kBits1 : QuantizedLayout::kBits2, 1, shared + at.planes,
                        scales, slice_sums};
    const auto column = [&](int group, int t) { return group * kGroup + group_column(lane, t); };
    const auto read = [&](const float* from, int group, float(&value)[4], float otherwise) {
#pragma unroll
      for (int t = 0; t < 4; ++t)
        value[t] =
            from != nullptr && column(group, t) < work.width ? __ldcg(from + column(group, t)) : otherwise;
    };
    constexpr int kAhead = 2;
    float weights[kAhead][4], value[kAhead][4];
    for (int i = 0; i < kAhead; ++i) read(work.norm.weights, warp + i * kWarps, weights[i], 1);
    wait_for_predecessor();
    // What lies beyond the last group is nothing's.
    const int padded = Bits == 1 ? slices : w.units;
    for (int group = warp; group < padded; group += kAhead * kWarps) {
      for (int i = 0; i < kAhead; ++i) {
        read(work.x, group + i * kWarps, value[i], 0);
        if (group != warp) read(work.norm.weights, group + i * kWarps, weights[i], 1);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int here = group + i * kWarps;
        if (here >= padded) break;
        if (work.norm.weights != nullptr) {
          const float sum = group_squares(value[i]);
          if (lane == 0) squares[here] = sum;
#pragma unroll
          for (int t = 0; t < 4; ++t) value[i][t] *= weights[i][t];
        }
        if (!quantize_lanes(own, 0, here, value[i]) && lane == 0 && blockIdx.x == 0)
          report_bad(step, work.op, 0);
      }
    }
    __syncthreads();
    if (works) load_planes(first_unit);
  } else {
    wait_for_predecessor();
    if (works) load_planes(first_unit);
    // Scales and sums are asked for once by each block: all blocks want the same few lines.
    const auto rows = static_cast<size_t>(work.in.rows);
    const int groups = Bits == 1 ? slices : w.units;
    for (int i = thread; i < 3 * groups; i += kThreads) {
      const bool is_scale = i < groups;
      const int of = is_scale ? i : i - groups;
      const bool there = (is_scale ? of : of / 2) < work.groups;
      if (is_scale)
        scales[of] = there ? __ldcg(work.in.scales + static_cast<size_t>(of) * rows) : 0;
      else
        slice_sums[of] = there ? __ldcg(work.in.sums + static_cast<size_t>(of) * rows) : 0;
    }
    __syncthreads();
  }

  // 2^plane of counts 4 part .. 4 part + 3 for the column that is the lane's quad.
  const uint32_t powers = 0x0201u << 2 * part;
  const uint32_t weigh[2] = {quad == 0   ? powers
                             : quad == 2 ? powers << 16
                                         : 0,
                             quad == 4   ? powers
                             : quad == 6 ? powers << 16
                                         : 0};
  const int turn = 4 * (part & 1) + 8 * (part >> 1);  // so that lanes store to different banks
  int place = 0, which = 0;                           // which: of two batches
  uint32_t parity = 0;
  for (int first = begin; first < end; first += work.batch, which ^= work.several) {
    const int pairs = min(work.batch, end - first);
    auto* const batch_sums = reinterpret_cast<float2*>(shared + at.sums) +
                             static_cast<size_t>(which * work.batch) * static_cast<size_t>(2 * slices * 16);
#pragma unroll 1
    for (int unit = first_unit; works && unit < w.units; unit += kWarps) {
      SlicePlanes<Bits> now[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) now[s] = next[s];
      if (unit + kWarps < w.units) {
        load_planes(unit + kWarps);
      } else if (first + work.batch < end && w.units > kWarps) {
        load_planes(first_unit);
      }
      const int slice = 2 * unit + (part & 1);
      const int base = Bits == 1 ? slice_sums[2 * slice] + slice_sums[2 * slice + 1] : slice_sums[slice];
      float2* to = batch_sums + (2 * first_pair + (part >> 1)) * slices * 16 + slice * 16;
#pragma unroll 1
      for (int pair = first_pair; pair < pairs; pair += apart, to += apart * 2 * slices * 16) {
        const unsigned char* from = ring + place * kPairBytes;
        wait(barriers + place, parity);
        const uint4 words[2] = {reinterpret_cast<const uint4*>(from)[lane],
                                reinterpret_cast<const uint4*>(from)[32 + lane]};
        const uint32_t scale =
            reinterpret_cast<const uint32_t*>(from + kWordBytes)[(part >> 1) * 16 + quad * 2 + (part & 1)];
        __syncwarp();
        if (lane == 0) fetch(place);
        if (++place == work.ring) {
          place = 0;
          parity ^= 1;
        }
        int low[2][2][4], high[4] = {}, top[4] = {}, sum[4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            const uint32_t a[2] = {s == 0 ? words[i].x : words[i].z, s == 0 ? words[i].y : words[i].w};
            const bool mine = quad / 2 == 2 * i + s;
            mma_bits(low[i][s], a, now[s].low);
            add_mma_bits(high, a, mine ? now[s].high : 0);
            if constexpr (Bits == 2) add_mma_bits(top, a, mine ? now[s].top : 0);
          }
        }
        const uint32_t counts[4] = {
            count_bytes(low[0][0], low[0][1], 0), count_bytes(low[0][0], low[0][1], 2),
            count_bytes(low[1][0], low[1][1], 0), count_bytes(low[1][0], low[1][1], 2)};
        add_mma_bytes(sum, counts, weigh);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int even = high[2 * i], odd = high[2 * i + 1];
          const int product = Bits == 1 ? 2 * sum[2 * i] + 512 * even - 1024 * odd
                                        : sum[2 * i] + 256 * even + 512 * odd - 1024 * top[2 * i];
          to[(quad + 8 * i + turn) & 15] =
              make_float2(static_cast<float>(product - base), half_bits_to_float(scale >> 16 * i));
        }
      }
    }
    __syncthreads();

    // A thread has a row of weights: slices ascending. The next batch may write other sums meanwhile.
    const int item = thread;
    if (item / 32 < pairs) {
      float factor = 1;
      if constexpr (kFloats) {
        if (work.norm.weights != nullptr) {
          float squared;
          factor =
              norm_factor(squares, (work.width + kGroup - 1) / kGroup, work.width, work.norm.eps, squared);
          if (thread == 0 && blockIdx.x == 0 && first == begin && !is_finite(squared))
            report_bad(step, work.norm_op, 0);
        }
      }
      const int row = item % 16, tile = item / 16;
      const int in_run = 2 * first + tile;
      const int column = row < 8 ? work.low_column(in_run, row) : work.high_column(in_run, row - 8);
      float* to = work.out.data + column;
      float before = 0;
      if constexpr (E == Epilogue::kAdd) {
        if (column >= 0) before = __ldcg(to);
      }
      const float2* from = batch_sums + tile * slices * 16;
      float y = 0;
#pragma unroll 8
      for (int s = 0; s < work.slices; ++s) {
        const float2 product = from[s * 16 + ((row + 4 * (s & 1) + 8 * (tile & 1)) & 15)];
        const float scale = Bits == 1 ? scales[s] : scales[s / 2];
        y = __fmaf_rn(product.x, __fmul_rn(product.y, kFloats ? __fmul_rn(scale, factor) : scale), y);
      }
      if constexpr (E == Epilogue::kSwiglu) {
        // Rows i and i + 8 of a tile are gate and up, with lanes eight apart.
        const float up = __shfl_xor_sync(kAllLanes, y, 8);
        if (row < 8 && column >= 0) {
          const float value = silu(y) * up;
          if (!kQuantizes || work.out.data != nullptr) *to = value;
          if constexpr (kQuantizes) reinterpret_cast<float*>(shared + at.values)[8 * tile + row] = value;
        }
      } else if (column >= 0) {
        *to = E == Epilogue::kAdd ? before + y : y;
      }
    }
    if constexpr (kQuantizes) {
      __syncthreads();
      if (warp == 0) {
        float value[4];
#pragma unroll
        for (int t = 0; t < 4; ++t)
          value[t] = reinterpret_cast<const float*>(shared + at.values)[group_column(lane, t)];
        if (!quantize_lanes(work.next, 0, first / kGroupPairs, value) && lane == 0)
          report_bad(step, work.next_op, 0);
      }
    } else if (!work.several && first + work.batch < end) {
      __syncthreads();
    }
  }
}

constexpr size_t kMostShared = 227 << 10;  // of a block

template <int Bits, bool kFloats, Epilogue E, bool kQuantizes>
void launch_row(const StepView& step, RowWork work, int multiprocessors, cudaStream_t stream) {
  const auto kernel = multiply_row_kernel<Bits, kFloats, E, kQuantizes>;
  work.stretch = kQuantizes ? kGroupPairs : 1;
  const int stretches = (work.pairs + work.stretch - 1) / work.stretch;
  const int blocks = std::min(stretches, multiprocessors);
  const int most = (stretches + blocks - 1) / blocks * work.stretch;
  const size_t pair_bytes = static_cast<size_t>(4 * work.weights.units) * 128;
  work.batch = kQuantizes ? kGroupPairs
                          : std::min({most, kWarps, std::max(1, static_cast<int>(kBatchBytes / pair_bytes))});
  work.several =
      !kQuantizes && work.batch < most && static_cast<size_t>(work.batch) * pair_bytes <= kBatchBytes;
  const int together = std::min(work.weights.units, kWarps), apart = kWarps / together;
  const int turns = (work.weights.units + kWarps - 1) / kWarps * ((most + apart - 1) / apart);
  work.ring = std::min(turns, static_cast<int>(kRingBytes / (kWarps * kPairBytes)));
  const auto shared_bytes = [&] { return size_t{RowLayout(work, Bits, kFloats, kQuantizes).bytes}; };
  while (work.ring > 1 && shared_bytes() > kMostShared) --work.ring;
  const size_t shared = shared_bytes();
  static const bool allowed = [&] {
    allow_shared(kernel, kMostShared);
    return true;
  }();
  static_cast<void>(allowed);
  launch(kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, true}, stream, step, work);
}

}  // namespace

void multiply_row(const StepView& step, const RowProduct& product, int multiprocessors, cudaStream_t stream) {
  const MatrixRun& run = *product.run;
  RowWork work{};
  static_cast<SignWork&>(work) = work_of({product.run, 1, product.in, product.out, product.epilogue});
  work.x = product.x;
  work.norm = product.norm;
  work.width = static_cast<int32_t>(run.columns);
  work.norm_op = product.norm_op;
  work.op = product.op;
  work.next = product.next;
  work.next_op = product.next_op;
  const int64_t tiles = run.interleaved ? (run.rows / 2 + 7) / 8 : (run.rows + 15) / 16;
  work.pairs = static_cast<int32_t>((tiles + 1) / 2);
  const auto choose = [&]<int Bits, bool kFloats>() {
    switch (product.epilogue) {
      case Epilogue::kStore:
        return launch_row<Bits, kFloats, Epilogue::kStore, false>(step, work, multiprocessors, stream);
      case Epilogue::kAdd:
        return launch_row<Bits, kFloats, Epilogue::kAdd, false>(step, work, multiprocessors, stream);
      case Epilogue::kSwiglu:
        return product.next.data != nullptr
                   ? launch_row<Bits, kFloats, Epilogue::kSwiglu, true>(step, work, multiprocessors, stream)
                   : launch_row<Bits, kFloats, Epilogue::kSwiglu, false>(step, work, multiprocessors, stream);
    }
  };
  if (run.sign.bits == 1)
    product.x != nullptr ? choose.template operator()<1, true>() : choose.template operator()<1, false>();
  else
    product.x != nullptr ? choose.template operator()<2, true>() : choose.template operator()<2, false>();
}

}  // namespace niwaki::cuda
