#include "cuda/attention.h"

#include "cuda/attention_tiles.h"
#include "cuda/warp.h"
#include "niwaki/error.h"

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

/// What a thread holds of one or two tiles of sixteen units: of units lane / 4 and 8 more, and of every 8 dimensions the pair
/// lane % 4, as the matrix instruction has its results.
template <int kTiles>
struct Sums {
  float of_span[kTiles][4], all[kTiles][4];
  float span_total[4];              // of units 0 and 8: [0] and [2]
  float span_max[2], total[2], max[2];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) all[i][j] = 0;
    }
    total[0] = total[1] = 0;
    max[0] = max[1] = -INFINITY;
  }
  __device__ void begin_span() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) of_span[i][j] = 0;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) span_total[j] = 0;
    span_max[0] = span_max[1] = -INFINITY;
  }
  /// Takes the maxima of a step in. Returns in `base` what its scores are taken relative to, in `factor` what scale_span must
  /// then take.
  __device__ void raise(const float (&step_max)[2], float (&base)[2], float (&factor)[2]) {
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float m = fmaxf(span_max[u], step_max[u]);
      base[u] = m == -INFINITY ? 0.0f : m;  // no token yet that the unit sees
      factor[u] = exp2_approx(span_max[u] - base[u]);
      span_max[u] = m;
    }
  }
  __device__ void scale_span(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) of_span[i][j] *= factor[j / 2];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) span_total[j] *= factor[j / 2];
  }
  __device__ void end_span() {
    float a[2], b[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float m = fmaxf(max[u], span_max[u]), base = m == -INFINITY ? 0.0f : m;
      a[u] = exp2_approx(max[u] - base);
      b[u] = exp2_approx(span_max[u] - base);
      max[u] = m;
      total[u] = fmaf(span_total[2 * u], b[u], total[u] * a[u]);
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) all[i][j] = fmaf(of_span[i][j], b[j / 2], all[i][j] * a[j / 2]);
    }
  }
};

/// A block at work. kDim: the head_dim, or 0 for any other. kWide: items may have more than kNarrowUnits.
template <int kDim, bool kQ8, bool kWide>
struct Block {
  const StepView& step;
  const Attention& a;
  unsigned char* const shared;
  const int dim, lane, warp;
  const Layout at;
  int next_item, next_begin;  // what is brought next; -1: from where the item begins
  uint32_t uses = 0;          // stages that were brought and taken

  __device__ Block(const StepView& step, const Attention& a, unsigned char* shared)
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

  // Queries.

  /// Units of whole sixteens, scaled, as float16; zeros for those that the item does not have.
  __device__ void load_queries(const AttentionItem& item) {
    const float scale = 1.44269504f / sqrtf(static_cast<float>(dim));  // log2(e): weights are powers of two
    const int chunks = dim / 8, units = (item.units + 15) / 16 * 16;
    for (int i = threadIdx.x; i < units * chunks; i += kThreads) {
      const int unit = i / chunks, chunk = i % chunks;
      uint4 packed = {0, 0, 0, 0};
      if (unit < item.units) {
        const int index = item.first_head + unit, row = item.first_row + index / group();
        const int head = item.kv_head * group() + index % group();
        const auto* from = reinterpret_cast<const float4*>(a.qkv + row * a.qkv_stride + head * dim + chunk * 8);
        float4 x = from[0], y = from[1];
        x = {x.x * scale, x.y * scale, x.z * scale, x.w * scale};
        y = {y.x * scale, y.y * scale, y.z * scale, y.w * scale};
        packed = {pack_halves(x.x, x.y), pack_halves(x.z, x.w), pack_halves(y.x, y.y), pack_halves(y.z, y.w)};
        if (!(fits_half(x.x) && fits_half(x.y) && fits_half(x.z) && fits_half(x.w) && fits_half(y.x) && fits_half(y.y) &&
              fits_half(y.z) && fits_half(y.w)))
          report_bad(step, a.op, row);
      }
      *reinterpret_cast<uint4*>(place(shared + at.queries, unit, chunk)) = packed;
    }
    if (threadIdx.x < kWideUnits) {
      const int unit = static_cast<int>(threadIdx.x), index = item.first_head + min(unit, item.units - 1);
      position(unit) = unit < units ? item.position + index / group() : -1;
    }
  }
  /// The position of a unit; in tiles of sixteen, those that the item does not have are where its last one is; -1: none of a tile.
  __device__ int& position(int unit) const { return reinterpret_cast<int*>(shared + at.positions)[unit]; }

  // Operands of matrix instructions: sixteen rows from `row` on; sixteen dimensions or tokens, number `k`.

  __device__ void load_queries_at(uint32_t (&q)[4], int row, int k) const {
    load_matrices(q, pair_of_chunks(shared + at.queries, row + lane % 16, k, lane / 16));
  }
  /// Of tokens token .. token + 15: two tiles of 8 tokens, q k^T.
  __device__ void load_keys(uint32_t (&r)[4], int token, int k) const {
    load_matrices(r, pair_of_chunks(halves(0), token + lane / 16 * 8 + lane % 8, k, lane / 8 % 2));
  }
  /// Of sixteen tokens, number k: two tiles of 8 dimensions from 16 `pair` on.
  __device__ void load_values(uint32_t (&r)[4], int pair, int k) const {
    load_matrices_transposed(r, pair_of_chunks(halves(1), k * kPiece + lane % 16, pair, lane / 16));
  }
  /// place(rows, row, 2 pair + which), written so that all pairs of a lane need one register: row % 8 is lane % 8 in all uses.
  __device__ unsigned char* pair_of_chunks(unsigned char* rows, int row, int pair, int which) const {
    if (dim % 64 != 0) return place(rows, row, 2 * pair + which);
    const uint32_t first = (which ^ (lane & 7)) * 16;
    return rows + row * (2 * dim) + (first ^ 32 * pair);
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

  /// Scores of sixteen units from `unit` on and tiles of 8 tokens from `token` on; those after the position of their unit become
  /// -inf.
  template <int kTiles>
  __device__ void mask(float (&s)[kTiles][4], int token, int unit) const {
    token += lane % 4 * 2;
    const int seen[2] = {position(unit + lane / 4) - token, position(unit + lane / 4 + 8) - token};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (8 * t + j % 2 > seen[j / 2]) s[t][j] = -INFINITY;
      }
    }
  }
  /// The maximum of the four lanes that have a unit.
  __device__ static float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
  }

  // Items.

  /// Calls f(begin, tokens) for each chunk, when its pages are brought or on their way, and span ends.
  template <int kTiles, class F>
  __device__ void each_chunk(const AttentionItem& item, Sums<kTiles>& sums, F&& f) {
    const int span = item.span_tokens;
    sums.clear();
    for (int begin = item.begin; begin < item.end; begin += kChunkTokens) {
      if (at.stages == 2 && warp == 0) bring(find_next(), 1 - stage());
      if (begin % span == 0) sums.begin_span();
      f(begin, min(kChunkTokens, item.end - begin));
      if ((begin + kChunkTokens) % span == 0 || begin + kChunkTokens >= item.end) sums.end_span();
      __syncthreads();
      ++uses;
      if (at.stages == 1 && warp == 0) bring(find_next(), 0);
    }
  }

  /// Up to sixteen units by all warps: each has sixteen tokens of the scores, and then sixteen dimensions of every 128.
  __device__ void attend_narrow(const AttentionItem& item) {
    constexpr int kParts = kDim == 0 ? 2 : 1;
    Sums<2 * kParts> sums;
    auto* maxima = reinterpret_cast<float*>(shared + at.maxima);  // [warp][unit]
    unsigned char* weights = shared + at.weights;                 // [unit][token], permuted as rows of 256 bytes are

    each_chunk(item, sums, [&](int begin, int tokens) {
      take_keys(tokens);
      float s[2][4] = {};
#pragma unroll 4
      for (int k = 0; k < dim / 16; ++k) {
        uint32_t q[4], r[4];
        load_queries_at(q, 0, k);
        load_keys(r, warp * kPiece, k);
        multiply_pair(s[0], s[1], q, r);
      }
      float top[2];
      mask(s, begin + warp * kPiece, 0);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        top[u] = quad_max(fmaxf(fmaxf(s[0][2 * u], s[0][2 * u + 1]), fmaxf(s[1][2 * u], s[1][2 * u + 1])));
        if (lane % 4 == 0) maxima[warp * kNarrowUnits + lane / 4 + 8 * u] = top[u];
      }
      __syncthreads();
      float step_max[kSteps][2], base[kSteps][2];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float* of_warps = maxima + i * kPieces * kNarrowUnits + lane / 4 + 8 * u;
          step_max[i][u] = of_warps[0];
          for (int w = 1; w < kPieces; ++w) step_max[i][u] = fmaxf(step_max[i][u], of_warps[w * kNarrowUnits]);
        }
      }
      float factor[kSteps][2];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) sums.raise(step_max[i], base[i], factor[i]);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int unit = lane / 4 + 8 * u;
          const float from = warp < kPieces ? base[0][u] : base[1][u];
          *reinterpret_cast<uint32_t*>(weights + unit * 2 * kChunkTokens +
                                       place_chunk(unit, 2 * warp + t, kChunkTokens) * 16 + lane % 4 * 4) =
              pack_halves(exp2_approx(s[t][2 * u] - from), exp2_approx(s[t][2 * u + 1] - from));
        }
      }
      take_values(tokens);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kSteps * kPieces; ++k) {
        if (k % kPieces == 0) sums.scale_span(factor[k / kPieces]);
        uint32_t p[4], r[4];
        load_matrices(p, weights + lane % 16 * 2 * kChunkTokens + place_chunk(lane, 2 * k + lane / 16, kChunkTokens) * 16);
        add_weights(sums.span_total, p);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int pair = warp + kWarps * part;
          if (pair >= dim / 16) continue;
          load_values(r, pair, k);
          multiply_pair(sums.of_span[2 * part], sums.of_span[2 * part + 1], p, r);
        }
      }
    });

    unsigned char* out = shared + at.sums;
    auto* totals = reinterpret_cast<float2*>(shared + at.totals);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int unit = lane / 4 + 8 * u;
      if (unit >= item.units) continue;
#pragma unroll
      for (int t = 0; t < 2 * kParts; ++t) {
        const int pair = warp + t / 2 * kWarps;
        if (pair >= dim / 16) continue;
        *reinterpret_cast<float2*>(sum_at(out, unit, pair * 16 + t % 2 * 8 + lane % 4 * 2)) = {sums.all[t][2 * u],
                                                                                         sums.all[t][2 * u + 1]};
      }
      if (warp == 0 && lane % 4 == 0) totals[unit] = {sums.max[u], sums.total[u]};
    }
    __syncthreads();
    for (int unit = warp; unit < item.units; unit += kWarps) emit(item, unit, out, unit, totals[unit]);
  }

  /// The weights of a step for sixteen units; the step begins at a piece of the chunk that begins at token `begin`.
  __device__ void weigh(Sums<kDim / 8>& sums, int begin, int first_piece, int first_unit, uint32_t (&p)[kPieces][4]) {
    constexpr int kTiles = kStepTokens / 8;
    const int first_token = first_piece * kPiece;
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
        load_keys(r, first_token + piece * kPiece, k);
        multiply_pair(s[2 * piece], s[2 * piece + 1], q, r);
      }
    }
    if (begin + first_token + kStepTokens - 1 > position(first_unit)) mask(s, begin + first_token, first_unit);
    float top[2], base[2], factor[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      top[u] = fmaxf(s[0][2 * u], s[0][2 * u + 1]);
#pragma unroll
      for (int t = 1; t < kTiles; ++t) top[u] = fmaxf(top[u], fmaxf(s[t][2 * u], s[t][2 * u + 1]));
      top[u] = quad_max(top[u]);
    }
    sums.raise(top, base, factor);
    sums.scale_span(factor);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&x)[4] = s[2 * piece + i / 2];
        const int u = i % 2;
        p[piece][i] = pack_halves(exp2_approx(x[2 * u] - base[u]), exp2_approx(x[2 * u + 1] - base[u]));
      }
    }
  }

  /// Up to sixteen units for each warp.
  __device__ void attend_wide(const AttentionItem& item) {
    constexpr int kTiles = kDim / 8;
    Sums<kTiles> sums;
    const int first_unit = warp * 16;

    each_chunk(item, sums, [&](int begin, int tokens) {
      take_keys(tokens);
#pragma unroll 1
      for (int step = 0; step < kSteps; ++step) {
        const int first = step * kPieces;  // piece of the chunk
        const bool active = begin + first * kPiece <= position(first_unit + 15);
        uint32_t p[kPieces][4];
        if (active) weigh(sums, begin, first, first_unit, p);
        if (step == 0) take_values(tokens);
        if (active) {
#pragma unroll
          for (int k = 0; k < kPieces; ++k) {
            add_weights(sums.span_total, p[k]);
#pragma unroll
            for (int pair = 0; pair < kDim / 16; ++pair) {
              uint32_t r[4];
              load_values(r, pair, first + k);
              multiply_pair(sums.of_span[2 * pair], sums.of_span[2 * pair + 1], p[k], r);
            }
          }
        }
      }
    });

    // Eight units at a time through the memory of the warp's queries.
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
      for (int row = 0; row < 8; ++row) {
        const float2 total = {__shfl_sync(kAllLanes, sums.max[u], row * 4),
                              __shfl_sync(kAllLanes, sums.total[u], row * 4)};
        const int unit = first_unit + 8 * u + row;
        if (unit < item.units) emit(item, unit, out, row, total);
      }
    }
  }

  // Results. A warp has a unit, its lanes four dimensions of every 128.

  /// `total`: M, L.
  __device__ void emit(const AttentionItem& item, int unit, unsigned char* sums, int row, float2 total) {
    const int record = item.record + item.begin / item.span_tokens * item.units + unit;
    const float inverse = 1.0f / total.y;
    for (int column = lane * 4; column < dim; column += 128) {
      float4 x = *reinterpret_cast<const float4*>(sum_at(sums, row, column));
      if (item.split != 0) {
        *reinterpret_cast<float4*>(a.scratch.sums + static_cast<int64_t>(record) * dim + column) = x;
      } else {
        finish(item, unit, column, x, inverse);
      }
    }
    if (item.split != 0 && lane == 0) a.scratch.totals[record] = total;
  }

  __device__ void finish(const AttentionItem& item, int unit, int column, float4 x, float inverse) {
    const int index = item.first_head + unit, row = item.first_row + index / group();
    const int head = item.kv_head * group() + index % group();
    x = {x.x * inverse, x.y * inverse, x.z * inverse, x.w * inverse};
    if (a.out != nullptr) *reinterpret_cast<float4*>(a.out + row * a.out_stride + head * dim + column) = x;
    if constexpr (kDim == kGroup) {
      if (!a.quantize) return;
      if (!quantize_group(a.quantized, row, head, {x.x, x.y, x.z, x.w}) && lane == 0) report_bad(step, a.quantize_op, row);
    }
  }

  /// After the records of a split item are written: whether they were the last of its units.
  __device__ bool arrive_last(const AttentionItem& item) {
    auto* last = reinterpret_cast<int*>(shared + at.last);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t* counter = a.scratch.counters + item.counter;
      *last = atomicAdd(counter, 1u) == static_cast<uint32_t>(item.split - 1);
      if (*last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return *last != 0;
  }

  /// As Sums::end_span, the spans of a unit in the lanes of a warp.
  __device__ void join(const AttentionItem& item) {
    for (int unit = warp; unit < item.units; unit += kWarps) {
      const int64_t record = item.record + unit;
      const float2 total =
          lane < item.split ? __ldcg(a.scratch.totals + record + lane * item.units) : float2{-INFINITY, 0};
      float max = total.x;
      for (int distance = 1; distance < 32; distance *= 2) {
        const float before = __shfl_up_sync(kAllLanes, max, distance);
        if (lane >= distance) max = fmaxf(max, before);
      }
      float before = __shfl_up_sync(kAllLanes, max, 1);
      if (lane == 0) before = -INFINITY;
      const float base = max == -INFINITY ? 0.0f : max;
      const float old_factor = exp2_approx(before - base), new_factor = exp2_approx(total.x - base);
      float all = 0;
      for (int span = 0; span < item.split; ++span) {
        all = fmaf(__shfl_sync(kAllLanes, total.y, span), __shfl_sync(kAllLanes, new_factor, span),
                   all * __shfl_sync(kAllLanes, old_factor, span));
      }
      for (int first = 0; first < dim; first += 128) {
        const int column = first + lane * 4;
        const float* from = a.scratch.sums + record * dim + column;
        float4 x = {0, 0, 0, 0};
#pragma unroll 8
        for (int span = 0; span < item.split; ++span, from += static_cast<int64_t>(item.units) * dim) {
          const float f = __shfl_sync(kAllLanes, old_factor, span), g = __shfl_sync(kAllLanes, new_factor, span);
          if (column >= dim) continue;
          const float4 y = __ldcg(reinterpret_cast<const float4*>(from));
          x = {fmaf(y.x, g, x.x * f), fmaf(y.y, g, x.y * f), fmaf(y.z, g, x.z * f), fmaf(y.w, g, x.w * f)};
        }
        if (column < dim) finish(item, unit, column, x, 1.0f / all);
      }
    }
  }

  __device__ void run() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * at.stages; ++i) init_barrier(barrier(0, i), 1);
      fence_barriers();
    }
    const Pages first = warp == 0 ? find_next() : Pages{};
    __syncthreads();
    wait_for_predecessor();
    if (warp == 0) bring(first, 0);
    for (int index = blockIdx.x; index < step.counts->attention_items; index += gridDim.x) {
      const AttentionItem& item = step.items[index];  // not a copy: it would take registers from the sums
      load_queries(item);
      __syncthreads();
      if constexpr (kWide) {
        item.units > kNarrowUnits ? attend_wide(item) : attend_narrow(item);
      } else {
        attend_narrow(item);
      }
      if (item.split != 0 && arrive_last(item)) join(item);
      __syncthreads();
    }
  }
};

template <int kDim, bool kQ8, bool kWide>
__global__ void __launch_bounds__(kThreads, 1) attend(StepView step, Attention attention) {
  NIWAKI_DYNAMIC_SHARED(shared);
  start_successor();
  Block<kDim, kQ8, kWide>(step, attention, shared).run();
}

/// Calls f(kernel, its shared memory in bytes) for a head_dim, a type of pages and the widest items.
template <class F>
void with_kernel(int32_t dim, bool q8, bool wide, F&& f) {
  const auto with_type = [&](auto f16_kernel, auto q8_kernel) {
    f(q8 ? q8_kernel : f16_kernel, Layout(dim, q8, wide).bytes);
  };
  if (dim == 128) return wide ? with_type(attend<128, false, true>, attend<128, true, true>)
                              : with_type(attend<128, false, false>, attend<128, true, false>);
  if (dim == 64) return wide ? with_type(attend<64, false, true>, attend<64, true, true>)
                             : with_type(attend<64, false, false>, attend<64, true, false>);
  with_type(attend<0, false, false>, attend<0, true, false>);
}

constexpr int32_t kMostDim = 256;

}  // namespace

void prepare_attention() {
  for (const int32_t dim : {64, 128, kMostDim}) {
    for (const bool q8 : {false, true}) {
      for (const bool wide : {false, has_wide(dim)})
        with_kernel(dim, q8, wide, [](auto kernel, uint32_t bytes) { allow_shared(kernel, bytes); });
    }
  }
}

void launch_attention(const StepView& step, const Attention& attention, int32_t blocks, cudaStream_t stream) {
  const int32_t dim = attention.layout.head_dim;
  if (dim <= 0 || dim > kMostDim || dim % 16 != 0) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: head_dim must be a multiple of 16 up to 256, got " + std::to_string(dim));
  }
  const bool q8 = attention.pages.type == KvType::kQ8, wide = attention.wide && has_wide(dim);
  with_kernel(dim, q8, wide, [&](auto kernel, uint32_t bytes) {
    launch(kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, true}, stream, step, attention);
  });
}

}  // namespace niwaki::cuda
