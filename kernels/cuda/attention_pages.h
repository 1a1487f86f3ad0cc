#pragma once
// The shared memory of a block of attention, and how keys and values come into it; for attention.cu alone.
#include "cuda/attention.h"
#include "cuda/attention_tiles.h"
#include "cuda/warp.h"

namespace niwaki::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPiece = 16;  // tokens that lie in one piece, and that a matrix instruction sums
constexpr int kPieces = kStepTokens / kPiece, kSteps = kChunkTokens / kStepTokens;  // of a step, of a chunk
static_assert(kChunkTokens == kWarps * kPiece && kWideUnits == 16 * kWarps && kNarrowUnits == 16);

/// The shared memory of a block, in bytes from its start. Keys and values of a chunk are staged by bulk copies, as pages have
/// them; those of q8 pages are then widened.
///
///    stage 0                 stage 1    q8: widened     queries   sums     weights    maxima, ...
///   +------+--------+-------+-   -+---+------+--------+---------+--------+----------+-------
///   | keys | values | scales|         | keys | values | units   | 16 x   | 16 x 128 |
///   +------+--------+-------+-   -+---+------+--------+---------+--------+----------+-------
struct Layout {
  int stages;
  uint32_t stage, tile;  // bytes: of a stage; of keys or values in a stage
  uint32_t widened, queries, sums, weights, maxima, totals, positions, barriers, last, bytes;

  __host__ __device__ constexpr Layout(int dim, bool q8, bool wide) : stages(dim > 128 ? 1 : 2) {
    const uint32_t row = 2 * dim, halves = kChunkTokens * row;
    tile = q8 ? halves / 2 : halves;
    stage = 2 * tile + (q8 ? 2 * kChunkTokens * 4 : 0);
    widened = stages * stage;
    queries = widened + (q8 ? 2 * halves : 0);
    sums = queries + (wide ? kWideUnits : kNarrowUnits) * row;
    weights = sums + kNarrowUnits * dim * 4;
    maxima = weights + kNarrowUnits * kChunkTokens * 2;
    totals = maxima + kWarps * kNarrowUnits * 4;
    positions = totals + kNarrowUnits * 8;
    barriers = positions + kWideUnits * 4;
    last = barriers + 2 * 2 * 8;
    bytes = last + 16;
  }
};

/// kDim: the head_dim, or 0 for any other. kWide: items may have more than kNarrowUnits.
template <int kDim, bool kQ8, bool kWide>
struct StagedPages {
  const StepView& step;
  const Attention& a;
  unsigned char* const shared;
  const int dim, lane, warp;
  const Layout at;
  int next_item, next_begin;  // what is brought next; -1: from where the item begins
  uint32_t uses = 0;          // stages that were brought and taken

  __device__ StagedPages(const StepView& step, const Attention& a, unsigned char* shared)
      : step(step),
        a(a),
        shared(shared),
        dim(kDim != 0 ? kDim : a.layout.head_dim),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        at(kDim != 0 ? kDim : a.layout.head_dim, kQ8, kWide),
        next_item(blockIdx.x),
        next_begin(-1) {}

  // Where things are.

  __device__ int group() const { return a.layout.heads / a.layout.kv_heads; }
  __device__ int stage() const { return at.stages == 2 ? uses % 2 : 0; }
  __device__ uint64_t* barrier(int stage, int which) const {
    return reinterpret_cast<uint64_t*>(shared + at.barriers) + 2 * stage + which;
  }
  /// Keys (0) or values (1) of the current chunk, as float16.
  __device__ unsigned char* halves(int which) const {
    return kQ8 ? shared + at.widened + which * 2 * at.tile : shared + stage() * at.stage + which * at.tile;
  }
  __device__ unsigned char* place(unsigned char* rows, int row, int chunk) const {
    return rows + row * (2 * dim) + place_chunk(row, chunk, dim) * 16;
  }
  __device__ float* sum_at(unsigned char* rows, int row, int column) const {
    return reinterpret_cast<float*>(rows + row * (4 * dim)) + place_chunk(row, column / 8, dim) * 8 + column % 8;
  }

  // Pages into shared memory.

  /// Then __syncthreads().
  __device__ void init() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 2 * at.stages; ++i) init_barrier(barrier(0, i), 1);
    fence_barriers();
  }
  /// Where the chunk lies that is brought next: for a lane of the first warp, sixteen tokens of its keys.
  struct Pages {
    const unsigned char* keys;  // the page
    int slot, pieces;           // no pieces: nothing is left
  };
  __device__ Pages find_next() {
    Pages found{nullptr, 0, 0};
    if (next_item >= step.counts->attention_items) return found;
    const AttentionItem& item = step.items[next_item];
    const int begin = next_begin < 0 ? item.begin : next_begin, tokens = min(kChunkTokens, item.end - begin);
    found.pieces = (tokens + kPiece - 1) / kPiece;
    if (lane < found.pieces) {
      const int token = begin + lane * kPiece;
      found.keys = a.pages.keys(step.tables[item.table + token / a.pages.block_size], item.kv_head);
      found.slot = token % a.pages.block_size;
    }
    next_begin = begin + kChunkTokens;
    if (next_begin >= item.end) {
      next_item += gridDim.x;
      next_begin = -1;
    }
    return found;
  }
  /// By the first warp: asks for keys and values.
  __device__ void bring(const Pages& pages, int to) {
    if (pages.pieces == 0) return;
    const uint32_t row = kQ8 ? dim : 2 * dim, bytes = kPiece * row, scales = kQ8 ? kPiece * 4 : 0;
    if (lane == 0) {
      arrive_expecting(barrier(to, 0), pages.pieces * (bytes + scales));
      arrive_expecting(barrier(to, 1), pages.pieces * (bytes + scales));
    }
    __syncwarp();
    if (lane >= pages.pieces) return;
    const unsigned char* page = pages.keys;
    unsigned char *staged = shared + to * at.stage, *staged_scales = staged + 2 * at.tile;
#pragma unroll
    for (int which = 0; which < 2; ++which, page += a.pages.page_bytes) {
      copy_bulk(staged + which * at.tile + lane * bytes, page + pages.slot * row, bytes, barrier(to, which));
      if (kQ8) {
        copy_bulk(staged_scales + (which * kChunkTokens + lane * kPiece) * 4,
                  page + a.pages.block_size * row + pages.slot * 4, scales, barrier(to, which));
      }
    }
  }

  __device__ void wait_for(int which) const {
    wait(barrier(stage(), which), (at.stages == 2 ? uses / 2 : uses) % 2);
  }

  /// Zeros for the values that no token has, whatever the memory holds: times a weight of 0 they are 0.
  __device__ void clear_values(int tokens) {
    const int chunks = dim / 8;
    for (int i = threadIdx.x; i < (kChunkTokens - tokens) * chunks; i += kThreads)
      *reinterpret_cast<uint4*>(place(halves(1), tokens + i / chunks, i % chunks)) = {0, 0, 0, 0};
    fence_async();  // the next bulk copy to this place comes after
  }

  __device__ void widen(int tokens) {
    const int chunks = dim / 16;
    for (int i = threadIdx.x; i < 2 * tokens * chunks; i += kThreads) {
      const int which = i >= tokens * chunks, j = which ? i - tokens * chunks : i, token = j / chunks, chunk = j % chunks;
      const unsigned char* from = shared + stage() * at.stage;
      const uint4 integers = *reinterpret_cast<const uint4*>(from + which * at.tile + token * dim + chunk * 16);
      const float scale = reinterpret_cast<const float*>(from + 2 * at.tile)[which * kChunkTokens + token];
      const auto pair = [&](uint32_t word, int first) {
        return pack_halves(static_cast<float>(static_cast<signed char>(word >> 8 * first)) * scale,
                           static_cast<float>(static_cast<signed char>(word >> 8 * (first + 1))) * scale);
      };
      const uint4 low = {pair(integers.x, 0), pair(integers.x, 2), pair(integers.y, 0), pair(integers.y, 2)};
      const uint4 high = {pair(integers.z, 0), pair(integers.z, 2), pair(integers.w, 0), pair(integers.w, 2)};
      *reinterpret_cast<uint4*>(place(halves(which), token, 2 * chunk)) = low;
      *reinterpret_cast<uint4*>(place(halves(which), token, 2 * chunk + 1)) = high;
    }
  }

  /// Waits for the keys of a chunk (q8: for the values, too, and widens both).
  __device__ void take_keys(int tokens) {
    wait_for(0);
    if constexpr (kQ8) {
      wait_for(1);
      widen(tokens);
      if (tokens < kChunkTokens) clear_values(tokens);
      __syncthreads();
    }
  }
  /// Waits for its values.
  __device__ void take_values(int tokens) {
    if constexpr (kQ8) return;
    wait_for(1);
    if (tokens == kChunkTokens) return;
    clear_values(tokens);
    __syncthreads();
  }
};

}  // namespace
}  // namespace niwaki::cuda
