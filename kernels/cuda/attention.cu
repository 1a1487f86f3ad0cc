#include <algorithm>

#include "cuda/attention.h"
#include "cuda/attention_pages.h"
#include "cuda/attention_sums.h"
#include "cuda/attention_tiles.h"
#include "cuda/head_lanes.h"
#include "cuda/warp.h"
#include "niwaki/error.h"

namespace niwaki::cuda {
namespace {

/// A block at work.
template <int kDim, bool kQ8, Kind kKind>
struct Block : StagedPages<kDim, kQ8, kKind> {
  using Base = StagedPages<kDim, kQ8, kKind>;
  using Part = typename Base::Part;
  using Base::a, Base::at, Base::bring, Base::bring_all, Base::clear_values, Base::dim, Base::find,
      Base::halves, Base::kThreads, Base::kWarps, Base::lane, Base::next_phase, Base::place, Base::shared,
      Base::step, Base::sum_at, Base::wait_for, Base::warp, Base::widen;
  using Base::Base;

  static constexpr bool kFused = kKind == Kind::kFused;
  using Head = HeadLanes<kDim == 0 ? 2 : 1>;

  // Items. The one at work and the next are in shared memory.

  __device__ AttentionItem& item_at(int slot) const {
    return reinterpret_cast<AttentionItem*>(shared + at.items)[slot];
  }
  /// By a warp.
  __device__ void fetch_item(int index, int slot) const {
    constexpr int kParts = sizeof(AttentionItem) / 16;
    static_assert(sizeof(AttentionItem) == 16 * kParts);
    if (lane < kParts)
      reinterpret_cast<uint4*>(&item_at(slot))[lane] =
          reinterpret_cast<const uint4*>(step.items + index)[lane];
  }
  __device__ int row_of(const AttentionItem& item, int unit) const {
    return item.first_row + a.group.quotient(item.first_head + unit);
  }
  __device__ int head_of(const AttentionItem& item, int unit) const {
    return item.kv_head * a.group.divisor + a.group.remainder(item.first_head + unit);
  }
  /// Units that the item does not have are where its last one is.
  __device__ int position_of(const AttentionItem& item, int unit) const {
    return item.position + a.group.quotient(item.first_head + min(unit, item.units - 1));
  }

  // Queries: units of whole sixteens, scaled, as float16. What is in the rows of units that the item does not
  // have changes nothing: no unit sees another.

  __device__ float query_scale() const {
    return 1.44269504f / sqrtf(static_cast<float>(dim));
  }  // log2(e): powers of two

  __device__ void load_queries(const AttentionItem& item) {
    const float scale = query_scale();
    const int chunks = dim / 8;
    int bad = INT32_MAX;
#pragma unroll kKind == Kind::kWide ? 8 : 1
    for (int i = threadIdx.x; i < item.units * chunks; i += kThreads) {
      const int unit = i / chunks, chunk = i % chunks, row = row_of(item, unit);
      const auto* from =
          reinterpret_cast<const float4*>(a.qkv + row * a.qkv_stride + head_of(item, unit) * dim + chunk * 8);
      float4 x = from[0], y = from[1];
      x = {x.x * scale, x.y * scale, x.z * scale, x.w * scale};
      y = {y.x * scale, y.y * scale, y.z * scale, y.w * scale};
      *reinterpret_cast<uint4*>(place(shared + at.queries, unit, chunk)) = {
          pack_halves(x.x, x.y), pack_halves(x.z, x.w), pack_halves(y.x, y.y), pack_halves(y.z, y.w)};
      if (!(fits_half(x.x) && fits_half(x.y) && fits_half(x.z) && fits_half(x.w) && fits_half(y.x) &&
            fits_half(y.y) && fits_half(y.z) && fits_half(y.w)))
        bad = min(bad, row);
    }
    if (bad != INT32_MAX) report_bad(step, a.op, bad);
  }

  // Fused items: heads of q, and the keys and values of the rows, which are the last tokens of the context.

  /// The first token of the item that is a row of the step.
  __device__ static int first_fresh(const AttentionItem& item) {
    return max(item.begin, item.position);
  }
  /// Whether keys and values of fresh tokens go where those of the pages are at once; else they are kept
  /// until their chunk has come.
  __device__ static bool is_one_chunk(const AttentionItem& item) {
    return item.end - item.begin <= kChunkTokens;
  }
  /// Where the key (0) or value (1) of a fresh token is kept, as float16.
  __device__ unsigned char* fresh_row(const AttentionItem& item, int token, int which) const {
    return shared + at.fresh + ((token - item.position) * 2 + which) * (2 * dim);
  }

  /// What a warp does with a head.
  struct HeadTask {
    int which;  // 0: key, 1: value, 2: query
    int row;
    const float *from, *angles;
    uint32_t to;  // in shared memory, a row permuted as number `permutation`
    int permutation;
    unsigned char* page;  // of a key or value, and its place in it
    int slot;
  };
  static_assert(sizeof(HeadTask) <= kTaskBytes);
  __device__ static int count_tasks(const AttentionItem& item) {
    return item.units + 2 * max(0, item.end - first_fresh(item));
  }
  /// Queries, then keys, then values.
  __device__ HeadTask task_of(const AttentionItem& item, int index, int count) const {
    HeadTask task;
    int head;
    if (index < item.units) {
      task.which = 2;
      task.page = nullptr;
      task.slot = 0;
      task.row = row_of(item, index);
      head = head_of(item, index);
      task.to = at.queries + index * (2 * dim);
      task.permutation = index;
    } else {
      const int fresh = (count - item.units) / 2, i = index - item.units;
      task.which = i >= fresh;
      const int token = first_fresh(item) + i - task.which * fresh;
      const int block = step.tables[item.table + a.block.quotient(token)];
      task.page = task.which == 0 ? a.pages.keys(block, item.kv_head) : a.pages.values(block, item.kv_head);
      task.slot = a.block.remainder(token);
      task.permutation = token;
      task.row = item.first_row + token - item.position;
      head = a.layout.heads + task.which * a.layout.kv_heads + item.kv_head;
      unsigned char* to = is_one_chunk(item) ? halves((token - item.begin) / kStepTokens, task.which) +
                                                   (token - item.begin) % kStepTokens * (2 * dim)
                                             : fresh_row(item, token, task.which);
      task.to = static_cast<uint32_t>(to - shared);
    }
    task.from = a.qkv + task.row * a.qkv_stride + head * dim;
    task.angles = a.norm.rope + task.row * a.norm.rope_stride;
    return task;
  }
  __device__ HeadTask& first_task() const {
    return reinterpret_cast<HeadTask*>(shared + at.tasks + warp * kTaskBytes)[0];
  }
  /// Of the warp, if it has one.
  __device__ void find_first_task(const AttentionItem& item) const {
    const int count = count_tasks(item);
    const HeadTask task = task_of(item, min(warp, count - 1), count);
    if (lane == 0) first_task() = task;
    __syncwarp();
  }
  /// What heads are multiplied by. Then __syncthreads().
  __device__ void fetch_norms() const {
    auto* norms = reinterpret_cast<float4*>(shared + at.norms);
    const int each = dim / 4;
    for (int i = threadIdx.x; i < 2 * each; i += kThreads)
      norms[i] = reinterpret_cast<const float4*>(i < each ? a.norm.q_norm : a.norm.k_norm)[i % each];
  }
  /// By all warps, each first with its first task. The chunk of an item that has one alone is taken, if not
  /// `taken` before, while numbers come. `waits`: for the kernel's predecessor, before them. Then, if pages
  /// are to come after the item's, fence_async().
  __device__ void prepare_heads(const AttentionItem& item, bool taken, bool waits) {
    const int count = count_tasks(item), half = dim / 2;
    HeadTask task = first_task();
    const bool one_chunk = is_one_chunk(item);
    if (waits) wait_for_predecessor();
#pragma unroll 1
    for (int index = warp; index < count || !taken;) {
      const bool there = index < count;
      Head numbers, angles;
      if (there) {
        numbers.load_now(task.from, half);
        if (task.which != 1) angles.load_now(task.angles, half);
      }
      if (!taken && one_chunk) take_chunk(item, item.begin);
      taken = true;
      if (!there) break;
      finish_head(task, numbers, angles);
      index += kWarps;
      if (index < count) task = task_of(item, index, count);
    }
  }
  __device__ void finish_head(const HeadTask& task, Head& numbers, const Head& angles) {
    const int half = dim / 2;
    bool fits = true;
    if (task.which != 1) {
      Head weight;
      weight.load(reinterpret_cast<const float*>(shared + at.norms) + (task.which == 2 ? 0 : dim), half);
      if (!numbers.norm(weight, a.norm.eps, half) && lane == 0) report_bad(step, a.norm.op, task.row);
      numbers.turn(angles);
    }
    if (task.which == 2) {
      const float scale = query_scale();
      numbers.each(half, [&](int, float2& x) { x = {x.x * scale, x.y * scale}; });
    } else if constexpr (kQ8) {
      fits = numbers.store_integers(half, task.slot, a.pages.block_size, task.page);
    }
    numbers.each(half, [&](int i, float2& x) {
      const int offset = place_chunk(task.permutation, i / 8, dim) * 16 + i % 8 * 2;
      const uint32_t packed = pack_halves(x.x, x.y);
      *reinterpret_cast<uint32_t*>(shared + task.to + offset) = packed;
      if (!kQ8 && task.which != 2)
        *reinterpret_cast<uint32_t*>(task.page + task.slot * (2 * dim) + offset) = packed;
      if (!kQ8 || task.which == 2) fits = fits && fits_half(x.x) && fits_half(x.y);
    });
    if (!fits) report_bad(step, task.which == 2 ? a.op : a.store_op, task.row);
  }
  /// The keys or values of fresh tokens that are in step i, which has so many tokens from `begin` on.
  __device__ void put_fresh(const AttentionItem& item, int i, int which, int begin, int tokens) const {
    const int chunks = dim / 8, first = max(begin, item.position);
#pragma unroll 1
    for (int j = threadIdx.x; j < (begin + tokens - first) * chunks; j += kThreads) {
      const int t = first + j / chunks, chunk = j % chunks;
      reinterpret_cast<uint4*>(halves(i, which) + (t - begin) * (2 * dim))[chunk] =
          reinterpret_cast<const uint4*>(fresh_row(item, t, which))[chunk];
    }
  }

  // A chunk's keys and values, once they have come.

  __device__ static int tokens_of_step(int tokens, int i) {
    return min(kStepTokens, tokens - i * kStepTokens);
  }
  /// All of step i, which has so many tokens from `begin` on. q8: widened, but for fresh ones.
  __device__ void take_step(const AttentionItem& item, int i, int begin, int tokens) {
    wait_for(i, 0);
    wait_for(i, 1);
    next_phase(i);
    if constexpr (kQ8) widen(i, kFused ? min(tokens, max(0, item.position - begin)) : tokens);
    clear_values(i, tokens);
  }
  /// Then __syncthreads().
  __device__ void take_chunk(const AttentionItem& item, int begin) {
    const int tokens = min(kChunkTokens, item.end - begin);
#pragma unroll 1
    for (int i = 0; i * kStepTokens < tokens; ++i)
      take_step(item, i, begin + i * kStepTokens, tokens_of_step(tokens, i));
  }
  /// float16; true if __syncthreads() must follow.
  __device__ bool take_values(int i, int tokens) {
    wait_for(i, 1);
    next_phase(i);
    return clear_values(i, tokens);
  }

  // Operands of matrix instructions: sixteen rows from `row` on; sixteen dimensions or tokens, number `k`.

  __device__ void load_queries_at(uint32_t (&q)[4], int row, int k) const {
    load_matrices(q, pair_of_chunks(shared + at.queries, row + lane % 16, k, lane / 16));
  }
  /// Of tokens token .. token + 15 of step i: two tiles of 8 tokens, q k^T.
  __device__ void load_keys(uint32_t (&r)[4], int i, int token, int k) const {
    load_matrices(r, pair_of_chunks(halves(i, 0), token + lane / 16 * 8 + lane % 8, k, lane / 8 % 2));
  }
  /// Of piece k of step i: two tiles of 8 dimensions from 16 `pair` on.
  __device__ void load_values(uint32_t (&r)[4], int i, int pair, int k) const {
    load_matrices_transposed(r, pair_of_chunks(halves(i, 1), k * kPiece + lane % 16, pair, lane / 16));
  }
  /// place(rows, row, 2 pair + which), written so that all pairs of a lane need one register: row % 8 is lane
  /// % 8 in all uses.
  __device__ unsigned char* pair_of_chunks(unsigned char* rows, int row, int pair, int which) const {
    return dim % 64 != 0 ? place(rows, row, 2 * pair + which) : pair_of_chunks(rows, row, pair, which, dim);
  }
  /// Rows of `width` numbers, a multiple of 64.
  __device__ unsigned char* pair_of_chunks(unsigned char* rows, int row, int pair, int which,
                                           int width) const {
    const uint32_t first = (which ^ (lane & 7)) * 16;
    return rows + row * (2 * width) + (first ^ 32 * pair);
  }
  __device__ static void multiply_pair(float (&first)[4], float (&second)[4], const uint32_t (&x)[4],
                                       const uint32_t (&r)[4]) {
    mma_f16(first, x, {r[0], r[1]});
    mma_f16(second, x, {r[2], r[3]});
  }
  __device__ static void add_weights(float (&total)[4], const uint32_t (&p)[4]) {
    constexpr uint32_t kOnes = 0x3c003c00;
    mma_f16(total, p, {kOnes, kOnes});
  }

  /// Scores of sixteen units and tiles of 8 tokens from `token` on; those after the position of their unit
  /// become -inf. `seen`: the positions of the lane's units.
  template <int kTiles>
  __device__ void mask(float (&s)[kTiles][4], int token, const int (&seen)[2]) const {
    token += lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (token + 8 * t + j % 2 > seen[j / 2]) s[t][j] = -INFINITY;
      }
    }
  }
  /// The maximum of the four lanes that have a unit.
  __device__ static float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
  }
  template <int kTiles>
  __device__ static float top_of(const float (&s)[kTiles][4], int u) {
    float top = fmaxf(s[0][2 * u], s[0][2 * u + 1]);
#pragma unroll
    for (int t = 1; t < kTiles; ++t) top = fmaxf(top, fmaxf(s[t][2 * u], s[t][2 * u + 1]));
    return quad_max(top);
  }
  __device__ static bool span_ends(const AttentionItem& item, int chunk) {
    const int end = chunk + kChunkTokens;
    return end >= item.end || end % item.span_tokens == 0;
  }

  /// What comes into shared memory after a chunk: the item's next one, or the first of the item `after`.
  struct Following {
    const AttentionItem* item;  // null: nothing
    int begin, block;
  };
  __device__ Following following(const AttentionItem& item, int begin, const AttentionItem* after) const {
    Following next{&item, begin + kChunkTokens, 0};
    if (next.begin >= item.end) {
      next.item = after;
      next.begin = after == nullptr ? 0 : after->begin;
    }
    if (next.item != nullptr) next.block = find(*next.item, next.begin);
    return next;
  }

  /// Up to sixteen units by all warps: each has a piece of every chunk (or of every step) for the scores, and
  /// then sixteen dimensions of every sixteen times as many as there are warps. `staged`: the first chunk has
  /// been taken. `after`: null, or an item whose first chunk is asked for on the way.
  __device__ void attend_narrow(const AttentionItem& item, bool staged, const AttentionItem* after) {
    constexpr int kOwn = kSteps * kPieces / kWarps;  // pieces: number warp + kWarps * own
    constexpr int kParts = kDim == 0 ? 16 / kWarps : (kDim / 16 + kWarps - 1) / kWarps;
    const auto has_part = [&](int pair) {
      return kDim / 16 % kWarps == 0 && kDim != 0 ? true : pair < dim / 16;
    };
    Sums<2 * kParts> sums;
    auto* maxima = reinterpret_cast<float*>(shared + at.maxima);  // [piece][unit]
    unsigned char* weights = shared + at.weights;  // [unit][token], permuted as rows of 256 bytes are
    const int seen[2] = {position_of(item, lane / 4), position_of(item, lane / 4 + 8)};
    sums.clear();
#pragma unroll 1
    for (int begin = item.begin; begin < item.end; begin += kChunkTokens) {
      const int tokens = min(kChunkTokens, item.end - begin), steps = tokens > kStepTokens ? 2 : 1;
      const Following next = following(item, begin, after);
      const bool fresh = kFused && !is_one_chunk(item) && begin + tokens > item.position;
      if (begin % item.span_tokens == 0) sums.begin_span();
      if ((kQ8 || fresh) && !staged) take_chunk(item, begin);
      if constexpr (kFused) {
#pragma unroll 1
        for (int i = 0; i < (fresh ? 2 * steps : 0); ++i)
          put_fresh(item, i / 2, i % 2, begin + i / 2 * kStepTokens, tokens_of_step(tokens, i / 2));
      }
      if (fresh || (kQ8 && !staged)) __syncthreads();
      staged |= kQ8 || fresh;
      if (kQ8 && next.item != nullptr) bring_all(*next.item, next.begin, next.block);
      float s[kOwn][2][4] = {};
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int piece = warp + kWarps * own;
        if (!staged && piece * kPiece < tokens) wait_for(piece / kPieces, 0);
      }
      if (warp * kPiece < tokens) {
#pragma unroll kDim == 0 ? 1 : 4
        for (int k = 0; k < dim / 16; ++k) {
          uint32_t q[4], r[4];
          load_queries_at(q, 0, k);
#pragma unroll
          for (int own = 0; own < kOwn; ++own) {
            const int piece = warp + kWarps * own;
            if (piece * kPiece >= tokens) break;
            load_keys(r, piece / kPieces, piece % kPieces * kPiece, k);
            multiply_pair(s[own][0], s[own][1], q, r);
          }
        }
      }
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int piece = warp + kWarps * own;
        mask(s[own], begin + piece * kPiece, seen);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float top = top_of(s[own], u);
          if (lane % 4 == 0) maxima[piece * kNarrowUnits + lane / 4 + 8 * u] = top;
        }
      }
      if (!kQ8 && next.item != nullptr) fence_async();  // the keys of fresh tokens
      __syncthreads();
      if (!kQ8 && next.item != nullptr) {
#pragma unroll 1
        for (int i = 0; i < kSteps; ++i) bring(*next.item, next.begin, next.block, i, 0);
      }
      float factor[kSteps][2], base[kSteps][2];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i >= steps) break;
        float step_max[2];
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float* of_pieces = maxima + i * kPieces * kNarrowUnits + lane / 4 + 8 * u;
          step_max[u] = of_pieces[0];
#pragma unroll
          for (int p = 1; p < kPieces; ++p) step_max[u] = fmaxf(step_max[u], of_pieces[p * kNarrowUnits]);
        }
        sums.raise(step_max, base[i], factor[i]);
      }
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int piece = warp + kWarps * own;
        if (piece * kPiece >= tokens) break;
#pragma unroll
        for (int t = 0; t < 2; ++t) {
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const int unit = lane / 4 + 8 * u;
            const float from = piece < kPieces ? base[0][u] : base[1][u];
            *reinterpret_cast<uint32_t*>(weights + unit * 2 * kChunkTokens +
                                         place_chunk(unit, 2 * piece + t, kChunkTokens) * 16 + lane % 4 * 4) =
                pack_halves(exp2_approx(s[own][t][2 * u] - from), exp2_approx(s[own][t][2 * u + 1] - from));
          }
        }
      }
      if (!staged) {
#pragma unroll 1
        for (int i = 0; i < steps; ++i) take_values(i, tokens_of_step(tokens, i));
      }
      staged = false;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i >= steps) break;
        sums.scale_span(factor[i]);
        const int pieces = (tokens_of_step(tokens, i) + kPiece - 1) / kPiece;
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          if (k >= pieces) break;
          uint32_t p[4], r[4];
          load_matrices(p, weights + lane % 16 * 2 * kChunkTokens +
                               place_chunk(lane, 2 * (i * kPieces + k) + lane / 16, kChunkTokens) * 16);
          add_weights(sums.span_total, p);
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            const int pair = warp + kWarps * part;
            if (!has_part(pair)) continue;
            load_values(r, i, pair, k);
            multiply_pair(sums.of_span[2 * part], sums.of_span[2 * part + 1], p, r);
          }
        }
      }
      if (span_ends(item, begin)) sums.end_span();
      // What is next goes where keys, weights and values were, the sums of many units where weights were.
      if (next.item == nullptr) {
        if (item.units > kNarrowUnits / 2) __syncthreads();
        break;
      }
      if (!kQ8) fence_async();  // the values of fresh tokens
      __syncthreads();
      if constexpr (!kQ8) {
#pragma unroll 1
        for (int i = 0; i < kSteps; ++i) bring(*next.item, next.begin, next.block, i, 1);
      }
    }
    emit_narrow(item, sums);
  }

  // Items of one chunk and few units: what one row of a sequence is, and what decoding waits for.

  static constexpr int kShortUnits = 8;
  __device__ static bool is_short(const AttentionItem& item) {
    return kFused && kDim != 0 && is_one_chunk(item) && item.units <= kShortUnits;
  }
  /// As attend_narrow, with the heads prepared, and the results, too. `ahead`: the first chunk of the item
  /// `after` is asked for on the way.
  __device__ void attend_short(const AttentionItem& item, bool taken, bool waits, const AttentionItem& after,
                               bool ahead) {
    const int tokens = item.end - item.begin, steps = tokens > kStepTokens ? 2 : 1, units = item.units;
    const int unit = lane / 4, piece = warp, seen = position_of(item, unit) - item.begin;
    const bool active = piece * kPiece < tokens, split = item.split != 0;
    // Half the keys are taken before the queries come, unless there are fresh ones among them.
    constexpr int kSlabs = kDim / 16;
    uint32_t keys[kSlabs][4];
    const auto take_keys = [&](int first, int end) {
#pragma unroll
      for (int k = first; k < end; ++k) load_keys(keys[k], piece / kPieces, piece % kPieces * kPiece, k);
    };
    take_keys(0, kSlabs / 2);
    const bool early = taken && item.begin + (piece + 1) * kPiece <= item.position;
    prepare_heads(item, taken, waits);
    __syncthreads();
    const int block = ahead ? find(after, after.begin) : 0;
    if (kQ8 && ahead) bring_all(after, after.begin, block);

    // What a matrix instruction has of units 8 to 15 is not looked at.
    auto* maxima = reinterpret_cast<float*>(shared + at.maxima);  // [unit][piece]
    unsigned char* weights = shared + at.weights;
    float s[2][4] = {};
    if (active) {
      if (!early) take_keys(0, kSlabs / 2);
      uint32_t q[kSlabs][4];
#pragma unroll
      for (int k = 0; k < kSlabs; ++k) load_queries_at(q[k], 0, k);
      take_keys(kSlabs / 2, kSlabs);
#pragma unroll
      for (int k = 0; k < kSlabs; ++k) multiply_pair(s[0], s[1], q[k], keys[k]);
    }
    const int token = piece * kPiece + lane % 4 * 2;
    float top = -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float& x = s[j / 2][j % 2];
      if (token + 8 * (j / 2) + j % 2 > seen) x = -INFINITY;
      top = fmaxf(top, x);
    }
    top = quad_max(top);
    if (lane % 4 == 0) maxima[unit * (kSteps * kPieces) + piece] = top;
    if (!kQ8 && ahead) fence_async();  // the keys of fresh tokens
    __syncthreads();
    if (!kQ8 && ahead) {
#pragma unroll 1
      for (int i = 0; i < kSteps; ++i) bring(after, after.begin, block, i, 0);
    }

    float max[kSteps], base[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const float4 m = *reinterpret_cast<const float4*>(maxima + (unit * kSteps + i) * kPieces);
      max[i] = fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w));
      if (i > 0) max[i] = fmaxf(max[i], max[i - 1]);
      base[i] = max[i] == -INFINITY ? 0.0f : max[i];
    }
    const float from = piece < kPieces ? base[0] : base[1];
    if (active) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        *reinterpret_cast<uint32_t*>(weights + unit * 2 * kChunkTokens +
                                     place_chunk(unit, 2 * piece + t, kChunkTokens) * 16 + lane % 4 * 4) =
            pack_halves(exp2_approx(s[t][0] - from), exp2_approx(s[t][1] - from));
      }
    }
    const int pair = kDim / 16 < kWarps ? warp % (kDim / 16) : warp;  // the warp's dimensions
    uint32_t v[kPieces][4];
#pragma unroll
    for (int k = 0; k < kPieces; ++k) load_values(v[k], 0, pair, k);
    __syncthreads();
    float sums[2][4] = {}, total[4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (i >= steps) break;
      if (i > 0) {
        const float factor = exp2_approx(max[0] - base[1]);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          sums[0][j] *= factor;
          sums[1][j] *= factor;
          total[j] *= factor;
        }
#pragma unroll
        for (int k = 0; k < kPieces; ++k) load_values(v[k], i, pair, k);
      }
      uint32_t p[kPieces][4];
#pragma unroll
      for (int k = 0; k < kPieces; ++k)
        load_matrices(p[k], pair_of_chunks(weights, lane % 16, i * kPieces + k, lane / 16, kChunkTokens));
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        if ((i * kPieces + k) * kPiece >= tokens) break;
        add_weights(total, p[k]);
        multiply_pair(sums[0], sums[1], p[k], v[k]);
      }
    }

    // The only span: as Sums::end_span leaves it. Keys have been read: results go where queries were.
    const bool has = unit < units && warp < kDim / 16;
    const int column = warp * 16 + lane % 4 * 2;
    if (split) {
      if (has) {
        const int64_t record = record_of(item, unit);
        float* to = a.scratch.sums + record * kDim + column;
#pragma unroll
        for (int t = 0; t < 2; ++t)
          *reinterpret_cast<float2*>(to + 8 * t) = {sums[t][0] + 0.0f, sums[t][1] + 0.0f};
        if (warp == 0 && lane % 4 == 0) a.scratch.totals[record] = {max[1], total[0] + 0.0f};
      }
      return;
    }
    const float inverse = 1.0f / total[0];
    if (has) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        *reinterpret_cast<float2*>(sum_at(shared + at.queries, unit, column + 8 * t)) = {
            (sums[t][0] + 0.0f) * inverse, (sums[t][1] + 0.0f) * inverse};
      }
    }
    if (!kQ8 && ahead) fence_async();  // the values of fresh tokens
    __syncthreads();
    if (!kQ8 && ahead) {
#pragma unroll 1
      for (int i = 0; i < kSteps; ++i) bring(after, after.begin, block, i, 1);
    }
    if (warp < units)
      finish(item, warp, 0, 1, [&](int column) { return *sum_at(shared + at.queries, warp, column); });
  }

  template <int kTiles>
  __device__ void emit_narrow(const AttentionItem& item, const Sums<kTiles>& sums) {
    unsigned char* out = shared + at.queries;
    auto* totals = reinterpret_cast<float2*>(shared + at.totals);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int unit = lane / 4 + 8 * u;
      if (unit >= item.units) continue;
      const int64_t record = record_of(item, unit);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int pair = warp + t / 2 * kWarps, column = pair * 16 + t % 2 * 8 + lane % 4 * 2;
        if (pair >= dim / 16) continue;
        float* to = item.split != 0 ? a.scratch.sums + record * dim + column : sum_at(out, unit, column);
        *reinterpret_cast<float2*>(to) = {sums.all[t][2 * u], sums.all[t][2 * u + 1]};
      }
      if (warp == 0 && lane % 4 == 0)
        (item.split != 0 ? a.scratch.totals[record] : totals[unit]) = {sums.max[u], sums.total[u]};
    }
    if (item.split != 0) return;
    __syncthreads();
    for (int unit = warp; unit < item.units; unit += kWarps) {
      const float inverse = 1.0f / totals[unit].y;
      for (int first = 0; first < dim; first += kGroup)
        finish(item, unit, first, inverse, [&](int column) { return *sum_at(out, unit, column); });
    }
  }

  /// The weights of step i of the chunk for sixteen units; it begins at token `begin`.
  __device__ void weigh(Sums<kDim / 8>& sums, int i, int begin, int first_unit, int first_seen,
                        const int (&seen)[2], uint32_t (&p)[kPieces][4]) {
    constexpr int kTiles = kStepTokens / 8;
    float s[kTiles][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[t][j] = 0;
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t q[4];
      load_queries_at(q, first_unit, k);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        uint32_t r[4];
        load_keys(r, i, piece * kPiece, k);
        multiply_pair(s[2 * piece], s[2 * piece + 1], q, r);
      }
    }
    if (begin + kStepTokens - 1 > first_seen) mask(s, begin, seen);
    const float top[2] = {top_of(s, 0), top_of(s, 1)};
    float base[2], factor[2];
    sums.raise(top, base, factor);
    sums.scale_span(factor);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float(&x)[4] = s[2 * piece + j / 2];
        const int u = j % 2;
        p[piece][j] = pack_halves(exp2_approx(x[2 * u] - base[u]), exp2_approx(x[2 * u + 1] - base[u]));
      }
    }
  }

  /// Up to sixteen units for each warp.
  __device__ void attend_wide(const AttentionItem& item) {
    constexpr int kTiles = kDim / 8;
    Sums<kTiles> sums;
    const int first_unit = warp * 16;
    const int first_seen = position_of(item, first_unit);
    const int last_seen = first_unit < item.units ? position_of(item, first_unit + 15) : -1;
    const int seen[2] = {position_of(item, first_unit + lane / 4),
                         position_of(item, first_unit + lane / 4 + 8)};
    sums.clear();
#pragma unroll 1
    for (int begin = item.begin; begin < item.end; begin += kChunkTokens) {
      const int next = begin + kChunkTokens, next_block = find(item, next);
      if (begin % item.span_tokens == 0) sums.begin_span();
#pragma unroll 1
      for (int i = 0; i < kSteps; ++i) {
        const int first = begin + i * kStepTokens, tokens = min(kStepTokens, item.end - first);
        if (tokens <= 0) break;
        const bool active = first <= last_seen;
        if constexpr (kQ8) {
          take_step(item, i, first, tokens);
          __syncthreads();
          bring(item, next, next_block, i, 0);
          bring(item, next, next_block, i, 1);
        } else {
          wait_for(i, 0);
        }
        uint32_t p[kPieces][4];
        if (active) weigh(sums, i, first, first_unit, first_seen, seen, p);
        if (!kQ8 && take_values(i, tokens)) __syncthreads();
        if (active) {
#pragma unroll
          for (int k = 0; k < kPieces; ++k) {
            add_weights(sums.span_total, p[k]);
#pragma unroll
            for (int pair = 0; pair < kDim / 16; ++pair) {
              uint32_t r[4];
              load_values(r, i, pair, k);
              multiply_pair(sums.of_span[2 * pair], sums.of_span[2 * pair + 1], p[k], r);
            }
          }
        }
        __syncthreads();
        if constexpr (!kQ8) {
          bring(item, next, next_block, i, 0);
          bring(item, next, next_block, i, 1);
        }
      }
      if (span_ends(item, begin)) sums.end_span();
    }
    emit_wide(item, sums, first_unit);
  }

  /// Eight units at a time through the memory of the warp's queries.
  template <int kTiles>
  __device__ void emit_wide(const AttentionItem& item, const Sums<kTiles>& sums, int first_unit) {
    unsigned char* out = shared + at.queries + first_unit * 2 * dim;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      __syncwarp();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        *reinterpret_cast<float2*>(sum_at(out, lane / 4, t * 8 + lane % 4 * 2)) = {sums.all[t][2 * u],
                                                                                   sums.all[t][2 * u + 1]};
      }
      __syncwarp();
#pragma unroll 2
      for (int row = 0; row < 8; ++row) {
        const float2 total = {__shfl_sync(kAllLanes, sums.max[u], row * 4),
                              __shfl_sync(kAllLanes, sums.total[u], row * 4)};
        const int unit = first_unit + 8 * u + row;
        if (unit >= item.units) break;
        const int64_t record = record_of(item, unit);
        const float inverse = 1.0f / total.y;
        if (item.split == 0) {
          finish(item, unit, 0, inverse, [&](int column) { return *sum_at(out, row, column); });
          continue;
        }
        for (int column = lane * 4; column < dim; column += 128) {
          *reinterpret_cast<float4*>(a.scratch.sums + record * dim + column) =
              *reinterpret_cast<const float4*>(sum_at(out, row, column));
        }
        if (lane == 0) a.scratch.totals[record] = total;
      }
    }
  }

  // Results. A warp has a unit.

  __device__ static int64_t record_of(const AttentionItem& item, int unit) {
    return item.record + item.begin / item.span_tokens * item.units + unit;
  }

  /// Four dimensions of a lane, of up to kGroup from `first` on; `sum_of` gives the sum of one.
  template <class F>
  __device__ void finish(const AttentionItem& item, int unit, int first, float inverse, F&& sum_of) {
    const int row = row_of(item, unit), head = head_of(item, unit);
    float x[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int column = kDim == kGroup ? group_column(lane, t) : first + lane + 32 * t;
      const bool there = kDim == kGroup || column < dim;
      x[t] = there ? sum_of(column) * inverse : 0;
      if (a.out != nullptr && there) a.out[row * a.out_stride + head * dim + column] = x[t];
    }
    if constexpr (kDim == kGroup) {
      if (!a.quantize) return;
      if (!quantize_lanes(a.quantized, row, head, x) && lane == 0) report_bad(step, a.quantize_op, row);
    }
  }

  /// After the records of a split item are written: whether they were the last of its units.
  __device__ bool arrive_last(const AttentionItem& item) {
    auto* last = reinterpret_cast<int*>(shared + at.last);
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t* counter = a.scratch.counters + item.counter;
      *last = add_meeting(counter, 1u) == static_cast<uint32_t>(item.split - 1);
      if (*last) *counter = 0;
    }
    __syncthreads();
    return *last != 0;
  }

  /// As Sums::end_span: a thread has two dimensions at a time, of sixteen units.
  __device__ void join(const AttentionItem& item) {
    constexpr int kAtOnce = 8;
    const int split = item.split, pairs = dim / 2;
    // Of each unit and span; the memory of pages has room for kNarrowUnits * kMostSpans.
    auto* factors = reinterpret_cast<float4*>(shared);
#pragma unroll 1
    for (int first = 0; first < item.units; first += kNarrowUnits) {
      const int units = min(kNarrowUnits, item.units - first), record = item.record + first;
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kWarps) {
        float2 total = {-INFINITY, 0};
        if (lane < split) total = __ldcg(a.scratch.totals + record + lane * item.units + unit);
        const float4 factor = factors_of(total);
        if (lane < split) factors[unit * split + lane] = factor;
      }
      bool begun = false;
#pragma unroll 1
      for (int i = threadIdx.x; i < units * pairs || !begun; i += kThreads) {
        const bool there = i < units * pairs;
        const int unit = there ? i / pairs : 0, column = there ? i % pairs * 2 : 0;
        const float* from = a.scratch.sums + static_cast<int64_t>(record + unit) * dim + column;
        float2 x = {0, 0};
        float all = 0;
#pragma unroll 1
        for (int span = 0; span < split; span += kAtOnce) {
          float2 y[kAtOnce];
#pragma unroll
          for (int s = 0; s < kAtOnce; ++s) {
            if (span + s < split)
              y[s] = __ldcg(
                  reinterpret_cast<const float2*>(from + static_cast<int64_t>(span + s) * item.units * dim));
          }
          if (!begun) __syncthreads();  // the factors
          begun = true;
#pragma unroll
          for (int s = 0; s < kAtOnce; ++s) {
            if (span + s >= split) break;
            const float4 f = factors[unit * split + span + s];
            all = fmaf(f.z, f.y, all * f.x);
            x = {fmaf(y[s].x, f.y, x.x * f.x), fmaf(y[s].y, f.y, x.y * f.x)};
          }
        }
        const float inverse = 1.0f / all;
        if (there)
          *reinterpret_cast<float2*>(sum_at(shared + at.queries, unit, column)) = {x.x * inverse,
                                                                                   x.y * inverse};
      }
      __syncthreads();
#pragma unroll 1
      for (int unit = warp; unit < units; unit += kWarps) {
        for (int at_column = 0; at_column < dim; at_column += kGroup) {
          finish(item, first + unit, at_column, 1,
                 [&](int column) { return *sum_at(shared + at.queries, unit, column); });
        }
      }
      __syncthreads();
    }
  }
  /// `total`: M and L of the lane's span. Returns what the sums before the span are multiplied by, what the
  /// span's are, and L.
  __device__ float4 factors_of(float2 total) const {
    float max = total.x;
    for (int distance = 1; distance < 32; distance *= 2) {
      const float before = __shfl_up_sync(kAllLanes, max, distance);
      if (lane >= distance) max = fmaxf(max, before);
    }
    float before = __shfl_up_sync(kAllLanes, max, 1);
    if (lane == 0) before = -INFINITY;
    const float base = max == -INFINITY ? 0.0f : max;
    return {exp2_approx(before - base), exp2_approx(total.x - base), total.y, 0};
  }

  __device__ void run() {
    const int count = step.counts->attention_items, first = static_cast<int>(blockIdx.x);
    if (warp == 0) fetch_item(first, 0);  // there or not: it must not wait for the count
    if constexpr (kFused) fetch_norms();
    this->init();
    // Blocks that have no item end, but not all: a kernel must not end before the one before it.
    if (first >= count && first != 0) return;
    __syncthreads();
    // All that does not take the kernel's predecessor is done before it has ended.
    const int begin = first < count ? item_at(0).begin : 0,
              block = first < count ? find(item_at(0), begin) : 0;
    if (first < count) bring_all(item_at(0), begin, block, Part::kStored);
    bool taken = false;
    if (kFused && first < count) {
      take_chunk(item_at(0), begin);
      find_first_task(item_at(0));
      __syncthreads();
      taken = true;
    }
    bool waits = kFused && first < count;
    if (!waits) wait_for_predecessor();
    if (!kFused && first < count) bring_all(item_at(0), begin, block, Part::kRest);
    int slot = 0;
#pragma unroll 1
    for (int index = first; index < count;) {
      this->forget_thread();
      const AttentionItem &item = item_at(slot), &next = item_at(slot ^ 1);
      const bool more = index + static_cast<int>(gridDim.x) < count;
      if (more && warp == kWarps - 1) fetch_item(index + gridDim.x, slot ^ 1);
      // A join takes the memory of the pages.
      const bool ahead = more && kKind != Kind::kWide && item.split == 0;
      if (is_short(item)) {
        if constexpr (kFused && kDim != 0) attend_short(item, taken, waits, next, ahead);
      } else {
        if constexpr (kFused) {
          prepare_heads(item, taken, waits);
          taken |= is_one_chunk(item);
        } else {
          load_queries(item);
        }
        __syncthreads();
        if (kKind == Kind::kWide && item.units > kNarrowUnits) {
          if constexpr (kKind == Kind::kWide) attend_wide(item);
        } else {
          attend_narrow(item, taken, ahead ? &next : nullptr);
        }
      }
      if (item.split != 0 && arrive_last(item)) join(item);
      waits = false;
      taken = false;
      if (!more) break;
      if (!ahead) fence_async();
      __syncthreads();
      if (!ahead) bring_all(next, next.begin, find(next, next.begin));
      if constexpr (kFused) find_first_task(next);
      index += static_cast<int>(gridDim.x);
      slot ^= 1;
    }
  }
};

/// Blocks of a processor for which registers are kept, and that are launched.
constexpr int most_blocks(Kind kind) {
  return kind == Kind::kWide ? 2 : kMostAttentionBlocks;
}

template <int kDim, bool kQ8, Kind kKind>
__global__ void __launch_bounds__(32 * warps_of(kKind), kDim == 0 ? 1 : most_blocks(kKind))
    attend(StepView step, Work work) {
  NIWAKI_DYNAMIC_SHARED(shared);
  start_successor();
  Block<kDim, kQ8, kKind>(step, work, shared).run();
}

/// Calls f(kernel, its shared memory in bytes) for a head_dim, a type of pages and a kind.
template <class F>
void with_kernel(int32_t dim, bool q8, Kind kind, F&& f) {
  const auto with = [&]<int kDim, Kind kKind>() {
    q8 ? f(attend<kDim, true, kKind>, Layout(dim, true, kKind).bytes)
       : f(attend<kDim, false, kKind>, Layout(dim, false, kKind).bytes);
  };
  const auto with_dim = [&]<int kDim>() {
    if constexpr (has_wide(kDim)) {
      if (kind == Kind::kWide) return with.template operator()<kDim, Kind::kWide>();
    }
    kind == Kind::kFused ? with.template operator()<kDim, Kind::kFused>()
                         : with.template operator()<kDim, Kind::kNarrow>();
  };
  if (dim == 128) return with_dim.template operator()<128>();
  if (dim == 64) return with_dim.template operator()<64>();
  with_dim.template operator()<0>();
}

constexpr int32_t kMostDim = 256;

Kind kind_of(const Attention& attention) {
  return attention.fused                                         ? Kind::kFused
         : attention.wide && has_wide(attention.layout.head_dim) ? Kind::kWide
                                                                 : Kind::kNarrow;
}

}  // namespace

void prepare_attention() {
  for (const int32_t dim : {64, 128, kMostDim}) {
    for (const bool q8 : {false, true}) {
      for (const Kind kind : {Kind::kNarrow, Kind::kFused, Kind::kWide}) {
        if (kind != Kind::kWide || has_wide(dim))
          with_kernel(dim, q8, kind, [](auto kernel, uint32_t bytes) { allow_shared(kernel, bytes); });
      }
    }
  }
}

int32_t attention_blocks(const Attention& attention, int32_t processors) {
  constexpr uint32_t kShared = 228 << 10, kReserved = 1 << 10;  // of a processor; for each of its blocks
  const Kind kind = kind_of(attention);
  const Layout layout(attention.layout.head_dim, attention.pages.type == KvType::kQ8, kind);
  const auto fit = static_cast<int32_t>(kShared / (layout.bytes + kReserved));
  return processors * std::min(fit, most_blocks(kind));
}

void launch_attention(const StepView& step, const Attention& attention, int32_t blocks, cudaStream_t stream) {
  const int32_t dim = attention.layout.head_dim;
  if (dim <= 0 || dim > kMostDim || dim % 16 != 0) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: head_dim must be a multiple of 16 up to 256, got " + std::to_string(dim));
  }
  const Kind kind = kind_of(attention);
  const Work work{attention, Divisor(attention.layout.heads / attention.layout.kv_heads),
                  Divisor(attention.pages.block_size)};
  with_kernel(dim, attention.pages.type == KvType::kQ8, kind, [&](auto kernel, uint32_t bytes) {
    launch(
        kernel,
        {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(32 * warps_of(kind))), bytes, true},
        stream, step, work);
  });
}

}  // namespace niwaki::cuda
