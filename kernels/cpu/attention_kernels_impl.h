// The kernels of attention_kernels.h over F32x16; a tier's attention.cpp includes this after choosing its
// simd.h.
//
// A unit is one (row, query head). Units run in groups of up to kGroup, which share every load of a page and
// give the processor independent sums; a small group takes more of a page at a time instead. What runs beside
// a sum changes no bit of it.
#pragma once
#include "cpu/attention_kernels.h"
#include "cpu/attention_pages.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

/// Sums of sixteen lanes that registers hold beside their operands; in plain C++, where registers hold none,
/// more than one is only more to compile.
#if defined(NIWAKI_SIMD_AVX512)
constexpr int kSums = 16;
#elif defined(NIWAKI_SIMD_AVX2) || defined(NIWAKI_SIMD_NEON)
constexpr int kSums = 4;
#else
constexpr int kSums = 1;
#endif
constexpr int kGroup = kSums < 4 ? kSums : 4;
/// Vectors of a page at a time: of keys those of a span of 64 tokens, of values those of 128 dimensions, so
/// that lines are met in the order in which they lie.
constexpr int kMostKeys = kSums < 4 ? kSums : 4, kMostValues = kSums < 8 ? kSums : 8;

template <int N>
struct Size {
  static constexpr int value = N;
};

/// Calls f with the number of units and of vectors of a page as constants.
template <int M, class F>
inline void with_units(int units, F&& f) {
  if constexpr (4 * M <= kSums) {
    if (units == 4) return f(Size<4>{}, Size<M>{});
    if (units == 3) return f(Size<3>{}, Size<M>{});
  }
  if constexpr (2 * M <= kSums) {
    if (units == 2) return f(Size<2>{}, Size<M>{});
  }
  f(Size<1>{}, Size<M>{});
}
template <int kMost, class F>
inline void with_sizes(int units, int vectors, F&& f) {
  if constexpr (kMost == 8) {
    if (vectors == 8) return with_units<8>(units, f);
  }
  if constexpr (kMost >= 4) {
    if (vectors == 4) return with_units<4>(units, f);
    if (vectors == 2) return with_units<2>(units, f);
  }
  with_units<1>(units, f);
}

/// Vectors of a page that `units` take at a time: of 1, 2, 4 and 8 up to `most`, so that all registers have
/// work.
inline int vectors_beside(int units, int most) {
  while (most > 1 && most * units > kSums) most /= 2;
  return most;
}

/// scores[u][t] = sum over d of q[u][d] * key[d][t], for N units and the 16 M tokens from `token` on.
template <int N, int M, class View>
inline void dot_keys(const float* const* q, View& view, int token, bool ahead, float* scores,
                     int64_t stride) {
  using T = typename View::Number;
  constexpr int kStep = 2;
  const int64_t key_stride = view.key_stride();
  const T* keys[M];
  for (int m = 0; m < M; ++m) keys[m] = view.key(token + m * kLanes);
  F32x16 s[N][M];
#pragma GCC unroll 8
  for (int u = 0; u < N; ++u) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) s[u][m] = F32x16::zero();
  }
  auto values = view.ahead_values;
  const int64_t dim = view.head_dim;
  for (int64_t begin = 0; begin < dim; begin += kStep) {
    if (ahead) values.bring(kStep * kLanes * M);
#pragma GCC unroll 8
    for (int i = 0; i < kStep; ++i) {
      const int64_t d = begin + i;
      F32x16 k[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) k[m] = load16(keys[m] + d * key_stride);
#pragma GCC unroll 8
      for (int u = 0; u < N; ++u) {
        const F32x16 x = F32x16::broadcast(q[u][d]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) s[u][m] = fma(x, k[m], s[u][m]);
      }
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < N; ++u) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) s[u][m].store(scores + u * stride + m * kLanes);
  }
  if (ahead) view.ahead_values = values;
}

/// sums[u][d] = sums[u][d] * corrections[u] + sum over the first `tokens` t of weights[u][t] * value[t][d],
/// for N units and the 16 M dimensions from `first` on.
template <int N, int M, class View>
inline void add_values(const float* weights, int64_t stride, const float* corrections, View& view, int tokens,
                       int first, bool ahead, float* sums) {
  using T = typename View::Number;
  const int64_t value_stride = view.value_stride();
  F32x16 a[N][M];
#pragma GCC unroll 8
  for (int u = 0; u < N; ++u) {
    const F32x16 correction = F32x16::broadcast(corrections[u]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
      a[u][m] = F32x16::load(sums + u * view.head_dim + first + m * kLanes) * correction;
  }
  auto next_keys = view.ahead_keys;
  for (int block = 0, begin = 0; begin < tokens; ++block, begin += view.block_size) {
    const T* values[M];
    for (int m = 0; m < M; ++m) values[m] = view.value(block, first + m * kLanes);
    const float* w = weights + begin;
    const int count = tokens - begin < view.block_size ? tokens - begin : view.block_size;
    for (int t = 0; t < count; ++t) {
      // As much as is read, row by row: asked for at once it would fill the queue of misses, and loads wait.
      if (ahead) next_keys.bring(M * kLanes);
      F32x16 v[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) v[m] = load16(values[m] + t * value_stride);
#pragma GCC unroll 8
      for (int u = 0; u < N; ++u) {
        const F32x16 x = F32x16::broadcast(w[u * stride + t]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) a[u][m] = fma(x, v[m], a[u][m]);
      }
    }
  }
#pragma GCC unroll 8
  for (int u = 0; u < N; ++u) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) a[u][m].store(sums + u * view.head_dim + first + m * kLanes);
  }
  if (ahead) view.ahead_keys = next_keys;
}

/// Numbers of the next keys that are asked for beside sixteen weights, so that memory does not wait
/// meanwhile.
constexpr int kBesideWeights = 64;

struct Units {
  int count;
  int span;
  float* sums;    // [unit][head_dim]
  float* scores;  // [unit][span], then the weights
  float* totals;  // [unit][16]
  float* maxima;  // [unit], padded to 16, as the two below
  float* new_maxima;
  float* corrections;
  float* factors;       // [span], of the scores
  float* value_scales;  // [span], of q8 pages
};

/// Scores of the units from `begin` on to weights of what `view` shows; tokens(u) is how many of the span's
/// tokens unit u sees.
template <bool kScaled, class View, class Tokens>
inline void soften(const Units& units, View& view, int begin, int vectors, Tokens&& tokens) {
  const F32x16 lowest = F32x16::broadcast(-__builtin_inff());
  for (int u = begin; u < units.count; ++u) {
    float* s = units.scores + static_cast<int64_t>(u) * units.span;
    F32x16 top = F32x16::broadcast(units.maxima[u]);
    for (int v = 0; v < vectors; ++v) {
      const int t = v * kLanes;
      const F32x16 masked =
          first(tokens(u) - t, F32x16::load(s + t) * F32x16::load(units.factors + t), lowest);
      masked.store(s + t);
      top = max(masked, top);
    }
    units.new_maxima[u] = largest(top);
  }
  for (int u = begin & ~(kLanes - 1); u < units.count; u += kLanes) {
    const F32x16 next = F32x16::load(units.new_maxima + u);
    exp(F32x16::load(units.maxima + u) - next).store(units.corrections + u);
    next.store(units.maxima + u);
  }
  for (int u = begin; u < units.count; ++u) {
    float* s = units.scores + static_cast<int64_t>(u) * units.span;
    const F32x16 top = F32x16::broadcast(units.maxima[u]);
    F32x16 total = F32x16::load(units.totals + u * kLanes);
    F32x16 correction = F32x16::broadcast(units.corrections[u]);
    for (int v = 0; v < vectors; ++v) {
      const int t = v * kLanes;
      const F32x16 weight = exp(F32x16::load(s + t) - top);
      (kScaled ? weight * F32x16::load(units.value_scales + t) : weight).store(s + t);
      total = fma(total, correction, weight);
      view.ahead_keys.bring(kBesideWeights);
      correction = F32x16::broadcast(1.0f);
    }
    total.store(units.totals + u * kLanes);
  }
}

/// One span for units from `begin` on; tokens(u) is how many of the span's tokens unit u sees, at least one.
template <bool kScaled, class View, class Tokens>
inline void attend_span(const AttentionTile& tile, const Units& units, int begin, View& view,
                        Tokens&& tokens) {
  const int dim = tile.head_dim, most = tokens(units.count - 1), vectors = (most + kLanes - 1) / kLanes;
  const int group = units.count - begin < kGroup ? units.count - begin : kGroup;

  for (int v = 0; v < vectors;) {
    const int wide = vectors_beside(group, kMostKeys), m = v + wide <= vectors ? wide : 1;
    for (int u = begin; u < units.count; u += kGroup) {
      const int n = units.count - u < kGroup ? units.count - u : kGroup;
      const float* q[kGroup];
      for (int i = 0; i < n; ++i) {
        q[i] =
            tile.q + (u + i) / tile.group * tile.q_stride + static_cast<int64_t>((u + i) % tile.group) * dim;
      }
      with_sizes<kMostKeys>(n, m, [&](auto n_, auto m_) {
        dot_keys<decltype(n_)::value, decltype(m_)::value>(
            q, view, v * kLanes, u == begin, units.scores + static_cast<int64_t>(u) * units.span + v * kLanes,
            units.span);
      });
    }
    v += m;
  }

  soften<kScaled>(units, view, begin, vectors, tokens);

  // Units that see as much run together: at the end of a prompt only the heads of a row do.
  const int alike = tokens(begin) == most ? group : (tile.group < group ? tile.group : group);
  for (int d = 0; d < dim;) {
    const int wide = vectors_beside(alike, kMostValues), m = d + wide * kLanes <= dim ? wide : 1;
    for (int u = begin; u < units.count;) {
      int n = 1;
      while (n < kGroup && (n + 1) * m <= kSums && u + n < units.count && tokens(u + n) == tokens(u)) ++n;
      with_sizes<kMostValues>(n, m, [&](auto n_, auto m_) {
        add_values<decltype(n_)::value, decltype(m_)::value>(
            units.scores + static_cast<int64_t>(u) * units.span, units.span, units.corrections + u, view,
            tokens(u), d, u == begin, units.sums + static_cast<int64_t>(u) * dim);
      });
      u += n;
    }
    d += m * kLanes;
  }
}

template <class T>
inline void attend_pages(const AttentionTile& tile) {
  constexpr bool kScaled = sizeof(T) == 1;
  const int dim = tile.head_dim, block = tile.block_size, span = attention_span(block);
  const int count = tile.rows * tile.group, padded = (count + kLanes - 1) / kLanes * kLanes;
  float* next = tile.scratch;
  const auto take = [&next](int64_t n) {
    float* p = next;
    next += n;
    return p;
  };
  const int64_t numbers = static_cast<int64_t>(dim) * block;
  WidePages wide{dim, block, span, take(static_cast<int64_t>(dim) * span),
                 take(static_cast<int64_t>(dim) * span)};
  Units units;
  units.count = count;
  units.span = span;
  units.sums = take(static_cast<int64_t>(count) * dim);
  units.scores = take(static_cast<int64_t>(count) * span);
  units.totals = take(static_cast<int64_t>(count) * kLanes);
  units.maxima = take(padded);
  units.new_maxima = take(padded);
  units.corrections = take(padded);
  units.factors = take(span);
  units.value_scales = take(span);
  for (int64_t i = 0; i < static_cast<int64_t>(count) * dim; ++i) units.sums[i] = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(count) * kLanes; ++i) units.totals[i] = 0;
  for (int i = 0; i < padded; ++i) units.maxima[i] = units.new_maxima[i] = -__builtin_inff();
  for (int i = 0; i < span; ++i) units.factors[i] = tile.scale;

  const int last_position = tile.first_position + tile.rows - 1, blocks = last_position / block + 1;
  const int span_blocks = span / block;
  const auto page = [&](size_t offset) { return reinterpret_cast<const T*>(tile.layer + offset); };
  Pages<T> pages;
  pages.head_dim = dim;
  pages.block_size = block;
  for (int first_block = 0; first_block < blocks; first_block += span_blocks) {
    const int start = first_block * block;
    // Rows that end before this span have nothing left to see.
    const int begin = start > tile.first_position ? (start - tile.first_position) * tile.group : 0;
    const auto tokens = [&](int u) {
      const int seen = tile.first_position + u / tile.group - start + 1;
      return seen < span ? seen : span;
    };
    const int span_end = first_block + span_blocks < blocks ? first_block + span_blocks : blocks;
    for (int b = first_block, i = 0; b < span_end; ++b, ++i) {
      const KvLayout::Pages now = tile.layout.pages(tile.block_table[b], tile.kv_head);
      pages.keys[i] = page(now.keys);
      pages.values[i] = page(now.values);
      if constexpr (kScaled) {
        const auto* key_scales = reinterpret_cast<const float*>(pages.keys[i] + numbers);
        const auto* value_scales = reinterpret_cast<const float*>(pages.values[i] + numbers);
        for (int t = 0; t < block; t += kLanes) {
          (F32x16::load(key_scales + t) * F32x16::broadcast(tile.scale)).store(units.factors + i * block + t);
          F32x16::load(value_scales + t).store(units.value_scales + i * block + t);
        }
      }
    }
    const AttentionTile::Next next =
        span_end < blocks ? AttentionTile::Next{tile.block_table + span_end, blocks - span_end, tile.kv_head}
                          : tile.next;
    const int next_blocks = next.blocks < span_blocks ? next.blocks : span_blocks;
    for (int i = 0; i < next_blocks; ++i) {
      const KvLayout::Pages then = tile.layout.pages(next.block_table[i], next.kv_head);
      pages.next_keys[i] = page(then.keys);
      pages.next_values[i] = page(then.values);
      if constexpr (kScaled) {
        prefetch(pages.next_keys[i] + numbers, block * static_cast<int64_t>(sizeof(float)));
        prefetch(pages.next_values[i] + numbers, block * static_cast<int64_t>(sizeof(float)));
      }
    }
    pages.ahead_keys = {pages.next_keys, pages.next_keys + next_blocks, numbers, 0};
    if (sizeof(T) < sizeof(float) && count - begin > 2 * kGroup) {
      pages.ahead_values = {pages.next_values, pages.next_values + next_blocks, numbers, 0};
      wide.fill(pages, tokens(count - 1));
      attend_span<kScaled>(tile, units, begin, wide, tokens);
    } else {
      // While keys are multiplied, the values of the same tokens are asked for, and meanwhile of values the
      // next keys.
      pages.ahead_values = {pages.values, pages.values + (span_end - first_block), numbers, 0};
      attend_span<kScaled>(tile, units, begin, pages, tokens);
    }
  }

  for (int u = 0; u < count; ++u) {
    const F32x16 inverse = F32x16::broadcast(1.0f / sum(F32x16::load(units.totals + u * kLanes)));
    float* out = tile.out + u / tile.group * tile.out_stride + static_cast<int64_t>(u % tile.group) * dim;
    for (int d = 0; d < dim; d += kLanes)
      (F32x16::load(units.sums + static_cast<int64_t>(u) * dim + d) * inverse).store(out + d);
  }
}

void attend(const AttentionTile& tile) {
  switch (tile.type) {
    case KvType::kF16:
      return attend_pages<uint16_t>(tile);
    case KvType::kF32:
      return attend_pages<float>(tile);
    case KvType::kQ8:
      return attend_pages<int8_t>(tile);
  }
}

}  // namespace
}  // namespace niwaki
