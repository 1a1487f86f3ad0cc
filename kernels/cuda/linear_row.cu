// One row of the step: bits of weights times its bit planes, as in linear_planes.cu, two tiles at a time.
//
// A block has a stretch of pairs of tiles, and goes through them in batches. Each of its warps takes every
// sixteenth unit of a pair, through a ring of its own in shared memory that it begins to fill before the
// kernels ahead have ended. What is not quantized yet each warp quantizes for its units: that takes less time
// than one more kernel. A slice's sum and scale wait in shared memory until all slices of the batch are
// there; then they are added, slices ascending.
//
// All of a kernel is one chain of instructions that waits for the row, so what does not depend on the row is
// computed before.
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

/// Where things are in shared memory, in bytes; the rings of the warps are first.
struct RowLayout {
  int32_t barriers, sums, squares, row, values, bytes;
};

/// Of a launch.
struct RowWork : SignWork {
  // What is not quantized yet.
  const float* x;
  NormWeights norm;
  float inverse_width;
  int32_t width, norm_op, op;  // operations as report_bad names them
  // What SwiGLU's results are quantized to.
  Quantized next;
  int32_t next_op;

  int32_t apart;       // warps that have the same unit
  int32_t share;       // of a warp: 256 / units, rounded up
  int32_t pairs;       // of tiles of the run
  int32_t stretch;     // pairs that stretches are multiples of
  int32_t each, more;  // stretches of a block; blocks that have one more
  int32_t batch;       // of pairs
  int32_t ring;        // units of pairs that a warp has room for
  bool several;        // batches, and room for the sums of two
  RowLayout at;
};

/// What waits for a row of weights and a slice: the sum, and what it is to be multiplied by; of a row that
/// the block quantizes only the weights' scale, since the factor of a norm is known last.
template <int Bits, bool kFloats>
struct SliceSum {
  float value, both_scales;

  __device__ static SliceSum of(int sum, uint32_t scales, int which, float row_scale) {
    return {static_cast<float>(sum), __fmul_rn(half_bits_to_float(scales >> 16 * which), row_scale)};
  }
  __device__ float sum() const { return value; }
  __device__ float scale(float) const { return both_scales; }
};
template <>
struct SliceSum<1, true> {
  uint32_t both;  // a sum of a group's integers fits 16 bits: cpu/quantize.h

  __device__ static SliceSum of(int sum, uint32_t scales, int which, float) {
    return {__byte_perm(static_cast<uint32_t>(sum), scales, which == 0 ? 0x5410 : 0x7610)};
  }
  __device__ float sum() const { return static_cast<float>(static_cast<short>(both & 0xffff)); }
  __device__ float scale(float row_scale) const {
    return __fmul_rn(half_bits_to_float(both >> 16), row_scale);
  }
};
template <>
struct SliceSum<2, true> {
  int32_t value;
  uint32_t half;

  __device__ static SliceSum of(int sum, uint32_t scales, int which, float) {
    return {sum, scales >> 16 * which & 0xffff};
  }
  __device__ float sum() const { return static_cast<float>(value); }
  __device__ float scale(float row_scale) const { return __fmul_rn(half_bits_to_float(half), row_scale); }
};
/// Bytes of a tile's sums: [slice][16], in places of which lanes that are beside each other have different
/// banks.
template <class Sum>
__host__ __device__ constexpr int tile_bytes_of(int units) {
  return 2 * units * 16 * static_cast<int>(sizeof(Sum)) + (sizeof(Sum) == 4 ? 64 : 0);
}

template <int Bits, class Sum>
RowLayout lay_out(const RowWork& work, bool floats, bool quantizes) {
  int32_t end = kWarps * work.ring * kPairBytes;
  const auto take = [&end](int32_t size) {
    const int32_t at = end;
    end += (size + 15) / 16 * 16;
    return at;
  };
  const int32_t units = work.weights.units;
  RowLayout at;
  at.barriers = take(kWarps * work.ring * 8);
  at.sums = take((work.several ? 2 : 1) * work.batch * 2 * tile_bytes_of<Sum>(units));
  at.squares = take(floats ? 2 * units * 4 : 0);
  // The row, once more for all warps whose units other warps have, too.
  at.row = take(std::max(1, kWarps / units) * 2 * units * PlanesRecord<Bits>::kWords * 4);
  at.values = take(quantizes ? kGroup * 4 : 0);
  at.bytes = end;
  return at;
}

/// The counts of rows `which` and `which` + 8 of two slices as bytes.
__device__ inline uint32_t count_bytes(const int (&first)[4], const int (&second)[4], int which) {
  return static_cast<uint32_t>(first[which] + first[which + 1] * (1 << 8) + second[which] * (1 << 16) +
                               second[which + 1] * (1 << 24));
}

template <int Bits, bool kFloats, Epilogue E, bool kQuantizes>
__global__ void __launch_bounds__(kThreads, 2) multiply_row_kernel(StepView step, RowWork work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  using Record = PlanesRecord<Bits>;
  const SignWeights& w = work.weights;
  const int thread = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int quad = lane >> 2, part = lane & 3;
  const int slices = 2 * w.units;
  const RowLayout& at = work.at;
  start_successor();

  const int block = static_cast<int>(blockIdx.x);
  const int begin = (work.each * block + min(block, work.more)) * work.stretch;
  const int end = min(work.pairs, begin + (work.each + (block < work.more)) * work.stretch);
  if (begin >= end) return wait_for_predecessor();  // no kernel ends before the one ahead
  // With fewer units than warps several warps have the same unit, of different pairs.
  const int apart = work.apart;
  const int first_pair = warp * work.share >> 8, first_unit = warp - first_pair * min(w.units, kWarps);
  const bool works = first_pair < apart;

  // The ring: its places are filled in the order of the loops below.
  unsigned char* const ring = shared + warp * work.ring * kPairBytes;
  auto* const barriers = reinterpret_cast<uint64_t*>(shared + at.barriers) + warp * work.ring;
  if (lane < work.ring) {
    init_barrier(barriers + lane, 1);
    fence_barriers();
  }
  __syncwarp();
  int ahead_first = begin, ahead_unit = first_unit, ahead_pair = begin + first_pair;
  const auto fetch = [&](int place) {                           // by the whole warp
    while (ahead_pair >= min(ahead_first + work.batch, end)) {  // to the next that there is
      if (ahead_first >= end) return;
      ahead_unit += kWarps;
      if (ahead_unit >= w.units) {
        ahead_unit = first_unit;
        ahead_first += work.batch;
      }
      ahead_pair = ahead_first + first_pair;
    }
    // SignWeights::unit_index of tile 2 ahead_pair
    const auto pair = static_cast<uint32_t>(ahead_pair);
    const uint32_t unit =
        ((pair >> 2) * static_cast<uint32_t>(w.units) + static_cast<uint32_t>(ahead_unit)) * 8 +
        (pair & 3) * 2;
    ahead_pair += apart;
    if (!elect()) return;
    unsigned char* to = ring + place * kPairBytes;
    arrive_expecting(barriers + place, kPairBytes);
    copy_bulk(to, w.words + size_t{unit} * 32, kWordBytes, barriers + place);
    copy_bulk(to + kWordBytes, w.scales + size_t{unit} * 8, kPairBytes - kWordBytes, barriers + place);
  };
  if (works) {
#pragma unroll 1
    for (int i = 0; i < work.ring; ++i) fetch(i);
  }

  // 2^plane of counts 4 part .. 4 part + 3 for the column that is the lane's quad.
  const uint32_t powers = 0x0201u << 2 * part;
  uint32_t weigh[2] = {quad == 0   ? powers
                       : quad == 2 ? powers << 16
                                   : 0,
                       quad == 4   ? powers
                       : quad == 6 ? powers << 16
                                   : 0};
  // All bits in columns 2 p and 2 p + 1 of sum p alone, which is of slice p % 2 of tile p / 2.
  uint32_t columns[4];
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    columns[p] = quad >> 1 == p ? ~0u : 0;
    compute_now(columns[p]);
  }
  // Where a lane finds the weights' scales in a place of the ring, and where its sums go: rows `quad` and
  // `quad` + 8 of a slice, turned so that lanes store to different banks.
  int scale_at = kWordBytes + ((part >> 1) * 16 + quad * 2 + (part & 1)) * 4;
  using Sum = SliceSum<Bits, kFloats>;
  constexpr int kSum = sizeof(Sum), kSliceBytes = 16 * kSum;
  const auto turn = [](int slice, int tile) {
    return kSum == 4 ? 8 * (slice & 1) : 4 * (slice & 1) + 8 * (tile & 1);
  };
  const int own_turn = turn(part & 1, part >> 1);
  int low_at = ((quad + own_turn) & 15) * kSum, high_at = ((quad + 8 + own_turn) & 15) * kSum;
  const int tile_bytes = tile_bytes_of<Sum>(w.units);
  int pair_bytes = apart * 2 * tile_bytes;
  int lane_at = at.sums + (2 * first_pair + (part >> 1)) * tile_bytes + (part & 1) * kSliceBytes;
  // Where the row of weights goes of which a thread adds up the slices, in a batch from `first` on.
  const int row = thread & 15, tile = thread >> 4;
  const auto column_of = [&](int first) {
    if (warp >= min(work.batch, end - first)) return -1;
    return row < 8 ? work.low_column(2 * first + tile, row) : work.high_column(2 * first + tile, row - 8);
  };
  const auto before_at = [&](int column) {
    return E == Epilogue::kAdd && column >= 0 ? __ldcg(work.out.data + column) : 0.0f;
  };
  int column = column_of(begin);
  float* out = work.out.data;
  const int row_at = at.sums + tile * tile_bytes;
  int even_at = row_at + ((row + turn(0, tile)) & 15) * kSum,
      odd_at = row_at + kSliceBytes + ((row + turn(1, tile)) & 15) * kSum;
  for (int* each : {&scale_at, &low_at, &high_at, &pair_bytes, &lane_at, &column, &even_at, &odd_at})
    compute_now(*each);
  compute_now(weigh[0]);
  compute_now(weigh[1]);
  compute_now(out);

  // The row, of which each warp brings what its units need.
  auto* const records = reinterpret_cast<uint32_t*>(shared + at.row) + first_pair * slices * Record::kWords;
  [[maybe_unused]] auto* const squares = reinterpret_cast<float*>(shared + at.squares);
  float before;
  if constexpr (kFloats) {
    const Quantized own{Bits == 1 ? QuantizedLayout::kBits1 : QuantizedLayout::kBits2, 1,
                        reinterpret_cast<uint8_t*>(records), nullptr, nullptr};
    // Half a warp has a group of its unit, or with two bits a unit of its own.
    const int half = lane >> 4;
    const auto group_of = [&](int pass) {
      const int unit = first_unit + kWarps * (Bits == 1 ? pass : 2 * pass + half);
      return unit >= w.units ? -1 : Bits == 1 ? 2 * unit + half : unit;
    };
    constexpr int kUnitsAtOnce = Bits == 1 ? 1 : 2;
    const auto lane_of = [&](const float* row, int group) {
      const int at_column = group * kGroup + half_warp_column(lane, 0);
      return row != nullptr && group >= 0 && at_column < work.width ? row + at_column : nullptr;
    };
    float value[8], weights[8];
    read_lane(lane_of(work.norm.weights, group_of(0)), weights, 1);
    const float* from = lane_of(work.x, group_of(0));
#pragma unroll
    for (float& weight : weights) compute_now(weight);
    compute_now(from);
    wait_for_predecessor();
    read_lane(from, value, 0);
    before = before_at(column);
    for (int pass = 0; first_unit + kWarps * kUnitsAtOnce * pass < w.units; ++pass) {
      const int group = group_of(pass);
      if (pass > 0) {
        read_lane(lane_of(work.x, group), value, 0);
        read_lane(lane_of(work.norm.weights, group), weights, 1);
      }
      if (work.norm.weights != nullptr) {
        const float sum = group_squares(value);
        if (lane % 16 == 0 && group >= 0 && first_pair == 0) squares[group] = sum;
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) value[e] *= weights[e];
      const bool finite = quantize_half_warp(own, 0, group, group >= 0 && works, value);
      if (!finite && lane % 16 == 0 && block == 0) report_bad(step, work.op, 0);
    }
    __syncwarp();
  } else {
    constexpr int kChunks = Record::kWords / 4;  // of 16 bytes
    const int in_unit = lane / kChunks, chunk = lane % kChunks;
    const auto bring = [&](int unit) {
      const int slice = 2 * unit + in_unit;
      if (in_unit > 1 || slice >= slices) return;
      const bool there = slice < work.slices;  // the second slice of the last unit may be nothing's
      copy_async(records + slice * Record::kWords + chunk * 4,
                 reinterpret_cast<const uint4*>(work.in.data) +
                     (there ? static_cast<size_t>(slice) * static_cast<size_t>(work.in.rows) * kChunks : 0) +
                     static_cast<size_t>(chunk),
                 there);
    };
    wait_for_predecessor();
    if (works) {
      for (int unit = first_unit; unit < w.units; unit += kWarps) bring(unit);
    }
    before = before_at(column);
    commit_copies();
    wait_copies<0>();
    __syncwarp();
  }

  int place = 0, which = 0;  // which: of two batches
  uint32_t parity = 0;
  for (int first = begin; first < end; first += work.batch, which ^= work.several) {
    const int pairs = min(work.batch, end - first);
    const int batch_at = which * work.batch * 2 * tile_bytes;
#pragma unroll 1
    for (int unit = first_unit; works && unit < w.units; unit += kWarps) {
      const uint32_t* record = records + 2 * unit * Record::kWords;
      uint32_t low_planes[2], high_planes[2], top_planes[2];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        low_planes[s] = record[s * Record::kWords + lane];
        high_planes[s] = record[s * Record::kWords + 32 + (lane & 7)];
        if constexpr (Bits == 2) top_planes[s] = record[s * Record::kWords + 40 + part];
      }
      const uint32_t* mine = record + (part & 1) * Record::kWords;
      const auto row_sum = static_cast<int>(mine[Record::kSum]);
      const float row_scale = kFloats ? 0 : __uint_as_float(mine[Record::kScale]);
      int to = lane_at + batch_at + unit * 2 * kSliceBytes;
#pragma unroll 1
      for (int left = pairs - first_pair; left > 0; left -= apart, to += pair_bytes) {
        const unsigned char* from = ring + place * kPairBytes;
        wait(barriers + place, parity);
        const uint4 words[2] = {reinterpret_cast<const uint4*>(from)[lane],
                                reinterpret_cast<const uint4*>(from)[32 + lane]};
        const uint32_t scale = *reinterpret_cast<const uint32_t*>(from + scale_at);
        __syncwarp();
        if (ahead_first < end) fetch(place);
        if (++place == work.ring) {
          place = 0;
          parity ^= 1;
        }
        int low[2][2][4], high[4] = {}, top[4] = {}, sum[4] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t a[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
          add_mma_bits(high, a, {high_planes[0] & columns[2 * i], high_planes[1] & columns[2 * i + 1]});
          if constexpr (Bits == 2)
            add_mma_bits(top, a, {top_planes[0] & columns[2 * i], top_planes[1] & columns[2 * i + 1]});
          mma_bits(low[i][0], {a[0], a[1]}, low_planes[0]);
          mma_bits(low[i][1], {a[2], a[3]}, low_planes[1]);
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
          *reinterpret_cast<Sum*>(shared + to + (i == 0 ? low_at : high_at)) =
              Sum::of(product - row_sum, scale, i, row_scale);
        }
      }
    }
    __syncthreads();

    // A thread has a row of weights: slices ascending. The next batch may write other sums meanwhile.
    if (warp < pairs) {
      float factor = 1;
      if constexpr (kFloats) {
        if (work.norm.weights != nullptr) {
          float sum;
          factor = norm_factor(squares, work.groups, work.inverse_width, work.norm.eps, sum);
          if (thread == 0 && block == 0 && !is_finite(sum)) report_bad(step, work.norm_op, 0);
        }
      }
      float y = 0;
      // Of slice s + i, s even.
      const auto sum_of = [&](int s, int i) {
        return *reinterpret_cast<const Sum*>(shared + batch_at + s * kSliceBytes +
                                             (i & 1 ? odd_at : even_at) + i / 2 * (2 * kSliceBytes));
      };
      const auto add = [&](int s, int i, const Sum& sum) {
        const auto* row_scales =
            reinterpret_cast<const float*>(shared + at.row) + Record::kScale + s * Record::kWords;
        y = __fmaf_rn(sum.sum(), sum.scale(kFloats ? __fmul_rn(row_scales[i * Record::kWords], factor) : 0),
                      y);
      };
      constexpr int kAtOnce = 16;
      int s = 0;
#pragma unroll 1
      for (; s + kAtOnce <= work.slices; s += kAtOnce) {
        Sum sums[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) sums[i] = sum_of(s, i);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) add(s, i, sums[i]);
      }
#pragma unroll 1
      for (int i = 0; s + i < work.slices; ++i) add(s, i, sum_of(s, i));
      float* to = out + column;
      if constexpr (E == Epilogue::kSwiglu) {
        // Rows i and i + 8 of a tile are gate and up, with lanes eight apart.
        const float up = __shfl_xor_sync(kAllLanes, y, 8);
        if (row < 8 && column >= 0) {
          const float value = silu(y) * up;
          if (!kQuantizes || out != nullptr) *to = value;
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
        const auto* values = reinterpret_cast<const float*>(shared + at.values);
#pragma unroll
        for (int t = 0; t < 4; ++t) value[t] = values[group_column(lane, t)];
        const bool finite = quantize_lanes(work.next, 0, first / kGroupPairs, value);
        if (!finite && lane == 0) report_bad(step, work.next_op, 0);
      }
    } else if (!work.several && first + work.batch < end) {
      __syncthreads();
    }
    if (first + work.batch < end) {
      column = column_of(first + work.batch);
      before = before_at(column);
    }
  }
}

constexpr size_t kMostShared = 227 << 10;  // of a block
constexpr size_t kBesideBytes = 92 << 10;  // of a block that is to fit beside one of SwiGLU

template <int Bits, bool kFloats, Epilogue E, bool kQuantizes>
void launch_row(const StepView& step, RowWork work, int multiprocessors, cudaStream_t stream) {
  const auto kernel = multiply_row_kernel<Bits, kFloats, E, kQuantizes>;
  using Sum = SliceSum<Bits, kFloats>;
  work.stretch = kQuantizes ? kGroupPairs : 1;
  const int stretches = (work.pairs + work.stretch - 1) / work.stretch;
  // One for each multiprocessor, with work or not, so that the blocks that come next find as much room on
  // each.
  const int blocks = multiprocessors;
  const int most = (stretches + blocks - 1) / blocks * work.stretch;
  work.each = stretches / blocks;
  work.more = stretches % blocks;
  const auto pair_bytes = static_cast<size_t>(2 * tile_bytes_of<Sum>(work.weights.units));
  work.batch = kQuantizes ? kGroupPairs
                          : std::min({most, kWarps, std::max(1, static_cast<int>(kBatchBytes / pair_bytes))});
  work.several =
      !kQuantizes && work.batch < most && static_cast<size_t>(work.batch) * pair_bytes <= kBatchBytes;
  const int together = std::min(work.weights.units, kWarps), apart = kWarps / together;
  work.apart = apart;
  work.share = (256 + together - 1) / together;
  const int turns = (work.weights.units + kWarps - 1) / kWarps * ((most + apart - 1) / apart);
  work.ring = std::min(turns, static_cast<int>(kRingBytes / (kWarps * kPairBytes)));
  const auto lay = [&] { work.at = lay_out<Bits, Sum>(work, kFloats, kQuantizes); };
  const size_t most_bytes = E == Epilogue::kAdd ? kBesideBytes : kMostShared;
  for (lay();
       work.ring > 1 && static_cast<size_t>(work.at.bytes) > (work.ring > 2 ? most_bytes : kMostShared);
       lay())
    --work.ring;
  static OncePerGpu allowed;
  if (allowed.first()) allow_shared(kernel, kMostShared);
  launch(kernel,
         {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(work.at.bytes), true},
         stream, step, work);
}

}  // namespace

void multiply_row(const StepView& step, const RowProduct& product, int multiprocessors, cudaStream_t stream) {
  const MatrixRun& run = *product.run;
  RowWork work{};
  static_cast<SignWork&>(work) = work_of({product.run, 1, product.in, product.out, product.epilogue});
  work.x = product.x;
  work.norm = product.norm;
  work.width = static_cast<int32_t>(run.columns);
  work.inverse_width = 1.0f / static_cast<float>(run.columns);
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
