#pragma once
// The shared memory of a block of attention, and how keys and values come into it; for attention.cu alone.
#include "cuda/attention.h"
#include "cuda/attention_tiles.h"
#include "cuda/warp.h"

namespace niwaki::cuda {
namespace {

constexpr int kPiece = 16;  // tokens that lie in one piece, and that a matrix instruction sums
constexpr int kPieces = kStepTokens / kPiece, kSteps = kChunkTokens / kStepTokens;  // of a step, of a chunk
static_assert(kSteps == 2 && kPieces == 4 && kNarrowUnits == 16);

/// What a kernel does: items of few units; those with their heads normed and stored on the way; items of many
/// units, too.
enum class Kind { kNarrow, kFused, kWide };

/// Warps of a block: one for each piece of a chunk, and where units are many for sixteen of them.
__host__ __device__ constexpr int warps_of(Kind kind) {
  return kind == Kind::kWide ? kWideUnits / 16 : kSteps * kPieces;
}

/// A divisor that is known at launch alone, for numbers of which it times each is less than 2^32.
struct Divisor {
  int32_t divisor;
  uint32_t inverse;  // times 2^32, rounded up

  Divisor() = default;
  explicit Divisor(int32_t d)
      : divisor(d), inverse(static_cast<uint32_t>(((uint64_t{1} << 32) + d - 1) / d)) {}  // 1: not used
  __device__ int quotient(int x) const {
    return divisor == 1 ? x : static_cast<int>(__umulhi(static_cast<unsigned>(x), inverse));
  }
  __device__ int remainder(int x) const { return x - quotient(x) * divisor; }
};

/// What a launch takes.
struct Work : Attention {
  Divisor group, block;  // heads of a KV head, tokens of a block
};

constexpr uint32_t kTaskBytes = 64;  // what is kept of a warp's work on a head

/// The shared memory of a block, in bytes from its start. Keys and values of the two steps of a chunk are
/// staged by bulk copies, as pages have them; those of q8 pages are then widened.
///
///    step 0                  step 1     q8: widened     queries    weights    maxima, ...
///   +------+--------+-------+-   -+---+------+--------+----------+----------+-------
///   | keys | values | scales|         | keys | values | of units | 16 x 128 |
///   +------+--------+-------+-   -+---+------+--------+----------+----------+-------
///                                                     | sums, in the end    |
struct Layout {
  uint32_t tile, stage;  // bytes: of keys or values of a step; of a step
  uint32_t widened, queries, weights, maxima, totals, fresh, norms, tasks, items, barriers, last, bytes;

  __host__ __device__ constexpr Layout(int dim, bool q8, Kind kind) {
    const uint32_t row = 2 * dim, halves = kStepTokens * row;
    tile = q8 ? halves / 2 : halves;
    stage = 2 * tile + (q8 ? 2 * kStepTokens * 4 : 0);
    widened = kSteps * stage;
    queries = widened + (q8 ? 2 * kSteps * halves : 0);
    weights = queries + (kind == Kind::kWide ? kWideUnits : kNarrowUnits) * row;
    const uint32_t after_weights = weights + kNarrowUnits * kChunkTokens * 2,
                   after_sums = queries + kNarrowUnits * dim * 4;
    maxima = after_weights > after_sums ? after_weights : after_sums;
    totals = maxima + kSteps * kPieces * kNarrowUnits * 4;
    fresh = totals + kNarrowUnits * 8;
    norms = fresh + (kind == Kind::kFused ? 2 * kFreshTokens * row : 0);
    tasks = norms + (kind == Kind::kFused ? 2 * dim * 4 : 0);
    items = tasks + (kind == Kind::kFused ? warps_of(kind) * kTaskBytes : 0);
    barriers = items + 2 * sizeof(AttentionItem);
    last = barriers + 2 * kSteps * 8;
    bytes = last + 16;
  }
};

/// kDim: the head_dim, or 0 for any other.
template <int kDim, bool kQ8, Kind kKind>
struct StagedPages {
  static constexpr int kWarps = warps_of(kKind), kThreads = 32 * kWarps;

  const StepView& step;
  const Work& a;
  unsigned char* const shared;
  const int dim;
  int lane, warp;
  const Layout at;
  uint32_t phases = 0;  // bit i: the parity that step i of a chunk waits for

  __device__ StagedPages(const StepView& step, const Work& a, unsigned char* shared)
      : step(step),
        a(a),
        shared(shared),
        dim(kDim != 0 ? kDim : a.layout.head_dim),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        at(kDim != 0 ? kDim : a.layout.head_dim, kQ8, kKind) {}

  /// Has the compiler find what depends on the thread anew from here on, instead of keeping it all in
  /// registers from before a loop.
  __device__ void forget_thread() {
#ifndef NIWAKI_CUDA_EMULATED
    asm volatile("" : "+r"(lane), "+r"(warp));
#endif
  }

  // Where things are.

  __device__ uint64_t* barrier(int i, int which) const {
    return reinterpret_cast<uint64_t*>(shared + at.barriers) + 2 * i + which;
  }
  /// Keys (0) or values (1) of step i of the chunk, as float16.
  __device__ unsigned char* halves(int i, int which) const {
    return kQ8 ? shared + at.widened + (2 * i + which) * 2 * at.tile
               : shared + i * at.stage + which * at.tile;
  }
  __device__ unsigned char* place(unsigned char* rows, int row, int chunk) const {
    return rows + row * (2 * dim) + place_chunk(row, chunk, dim) * 16;
  }
  __device__ float* sum_at(unsigned char* rows, int row, int column) const {
    return reinterpret_cast<float*>(rows + row * (4 * dim)) + place_chunk(row, column / 8, dim) * 8 +
           column % 8;
  }

  // Pages into shared memory.

  /// Then __syncthreads().
  __device__ void init() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 2 * kSteps; ++i) init_barrier(barrier(0, i), 1);
    fence_barriers();
  }
  /// For a lane of the last warp: the block that has the lane's piece of the chunk at token `begin`, if the
  /// item has it.
  __device__ int find(const AttentionItem& item, int begin) const {
    const int token = begin + lane * kPiece;
    return warp == kWarps - 1 && lane < kSteps * kPieces && token < item.end
               ? step.tables[item.table + a.block.quotient(token)]
               : 0;
  }
  enum class Part { kAll, kStored, kRest };
  /// By the last warp, which has least to do otherwise: asks for keys (0) or values (1) of step i of that
  /// chunk, if the item has it; in two parts, of which kStored comes first, or in one.
  __device__ void bring(const AttentionItem& item, int begin, int block, int i, int which,
                        Part part = Part::kAll) const {
    const uint32_t row = kQ8 ? dim : 2 * dim, bytes = kPiece * row, scales = kQ8 ? kPiece * 4 : 0;
    const int step_begin = begin + i * kStepTokens;
    if (warp != kWarps - 1 || step_begin >= item.end) return;
    const int count = min(kPieces, (item.end - step_begin + kPiece - 1) / kPiece), piece = lane - i * kPieces;
    if (lane == 0 && part != Part::kRest) arrive_expecting(barrier(i, which), count * (bytes + scales));
    __syncwarp();
    if (piece < 0 || piece >= count) return;
    const int token = step_begin + piece * kPiece, slot = a.block.remainder(token);
    const bool stored = kKind == Kind::kFused || token + kPiece <= item.stored;
    if (part != Part::kAll && stored != (part == Part::kStored)) return;
    const unsigned char* page =
        which == 0 ? a.pages.keys(block, item.kv_head) : a.pages.values(block, item.kv_head);
    unsigned char* staged = shared + i * at.stage;
    copy_bulk(staged + which * at.tile + piece * bytes, page + slot * row, bytes, barrier(i, which));
    if (kQ8) {
      copy_bulk(staged + 2 * at.tile + (which * kStepTokens + piece * kPiece) * 4,
                page + a.pages.block_size * row + slot * 4, scales, barrier(i, which));
    }
  }
  __device__ void bring_all(const AttentionItem& item, int begin, int block, Part part = Part::kAll) const {
#pragma unroll 1
    for (int i = 0; i < 2 * kSteps; ++i) bring(item, begin, block, i / 2, i % 2, part);
  }

  __device__ void wait_for(int i, int which) const {
    wait(barrier(i, which), phases >> i & 1);
  }
  /// When keys and values of step i have come.
  __device__ void next_phase(int i) {
    phases ^= 1u << i;
  }

  /// Zeros for the values of the last piece (kWide: of the step) that no token has, whatever the memory
  /// holds: times a weight of 0 they are 0. Returns whether there were any.
  __device__ bool clear_values(int i, int tokens) const {
    const int chunks = dim / 8;
    const int end = kKind == Kind::kWide ? kStepTokens : (tokens + kPiece - 1) / kPiece * kPiece;
    if (tokens == end) return false;
#pragma unroll 1
    for (int j = threadIdx.x; j < (end - tokens) * chunks; j += kThreads)
      *reinterpret_cast<uint4*>(place(halves(i, 1), tokens + j / chunks, j % chunks)) = {0, 0, 0, 0};
    fence_async();  // the next bulk copy to this place comes after
    return true;
  }

  __device__ void widen(int i, int tokens) const {
    const int chunks = dim / 16;
    const unsigned char* from = shared + i * at.stage;
    for (int j = threadIdx.x; j < 2 * tokens * chunks; j += kThreads) {
      const int which = j >= tokens * chunks, n = which ? j - tokens * chunks : j, token = n / chunks,
                chunk = n % chunks;
      const uint4 integers =
          *reinterpret_cast<const uint4*>(from + which * at.tile + token * dim + chunk * 16);
      const float scale = reinterpret_cast<const float*>(from + 2 * at.tile)[which * kStepTokens + token];
      const auto pair = [&](uint32_t word, int first) {
        return pack_halves(static_cast<float>(static_cast<signed char>(word >> 8 * first)) * scale,
                           static_cast<float>(static_cast<signed char>(word >> 8 * (first + 1))) * scale);
      };
      const uint4 low = {pair(integers.x, 0), pair(integers.x, 2), pair(integers.y, 0), pair(integers.y, 2)};
      const uint4 high = {pair(integers.z, 0), pair(integers.z, 2), pair(integers.w, 0), pair(integers.w, 2)};
      *reinterpret_cast<uint4*>(place(halves(i, which), token, 2 * chunk)) = low;
      *reinterpret_cast<uint4*>(place(halves(i, which), token, 2 * chunk + 1)) = high;
    }
  }
};

}  // namespace
}  // namespace niwaki::cuda
