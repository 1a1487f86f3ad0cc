// The kernels of attention_kernels.h over F32x16; a tier's attention.cpp includes this after choosing its
// simd.h.
//
// A unit is one (row, query head). Units run in groups of up to kGroup, which share every load of a page and
// give the processor independent sums; a small group takes more of a page at a time instead. What runs beside
// a sum changes no bit of it.
#pragma once
#include "cpu/attention_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

constexpr int kGroup = 4;
/// Sums of sixteen lanes that registers hold beside their operands.
#if defined(__AVX512F__)
constexpr int kSums = 16;
#else
constexpr int kSums = 4;
#endif
constexpr int kLine = 64;  // bytes that one prefetch brings

inline F32x16 load16(const float* p) {
  return F32x16::load(p);
}
inline F32x16 load16(const uint16_t* p) {
  return F32x16::load_f16(p);
}
inline F32x16 load16(const int8_t* p) {
  return F32x16::load_i8(p);
}

inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(static_cast<const std::byte*>(p) + i);
}

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
template <class F>
inline void with_sizes(int units, int vectors, F&& f) {
  if (vectors == 4) return with_units<4>(units, f);
  if (vectors == 2) return with_units<2>(units, f);
  with_units<1>(units, f);
}

/// Vectors of a page that `units` take at a time: 1, 2 or 4, so that all registers have work.
inline int vectors_beside(int units) {
  int vectors = 4;
  while (vectors > 1 && vectors * units > kSums) vectors /= 2;
  return vectors;
}

/// The pages of a span as they are in memory.
template <class T>
struct Pages {
  using Number = T;
  static constexpr int kMost = 4;  // blocks in a span
  int head_dim, block_size;
  const T* keys[kMost];
  const T* values[kMost];
  // What is asked for in the meantime: values for keys, and for values the keys of the next span.
  const T* next_keys[kMost];

  int64_t key_stride() const { return block_size; }
  int64_t value_stride() const { return head_dim; }
  const T* key(int token) const { return keys[token / block_size] + token % block_size; }
  const T* value(int block, int d) const { return values[block] + d; }
  const T* beside_key(int token) const {
    return values[token / block_size] + static_cast<int64_t>(token % block_size) * head_dim;
  }
  const T* beside_value(int block, int d) const {
    return next_keys[block] + static_cast<int64_t>(d) * block_size;
  }
};

/// The pages of a span as float32, for many units: what is read together lies together.
struct WidePages {
  using Number = float;
  int head_dim, block_size, span;
  float* keys;    // [token / 16][head_dim][16]
  float* values;  // [head_dim / 16][token][16]

  int64_t key_stride() const { return kLanes; }
  int64_t value_stride() const { return kLanes; }
  const float* key(int token) const { return keys + static_cast<int64_t>(token) * head_dim; }
  const float* value(int block, int d) const {
    return values + static_cast<int64_t>(d) * span + block * block_size * kLanes;
  }
  const float* beside_key(int token) const { return key(token); }
  const float* beside_value(int block, int d) const { return value(block, d); }

  template <class T>
  void fill(const Pages<T>& pages, int tokens) const {
    for (int t = 0; t < tokens; t += kLanes) {
      const T* from = pages.key(t);
      float* to = keys + static_cast<int64_t>(t) * head_dim;
      for (int d = 0; d < head_dim; ++d) {
        load16(from + static_cast<int64_t>(d) * block_size).store(to + static_cast<int64_t>(d) * kLanes);
      }
    }
    for (int t = 0; t < tokens; ++t) {
      const T* from = pages.values[t / block_size] + static_cast<int64_t>(t % block_size) * head_dim;
      float* to = values + static_cast<int64_t>(t) * kLanes;
      for (int d = 0; d < head_dim; d += kLanes) load16(from + d).store(to + static_cast<int64_t>(d) * span);
    }
  }
};

/// scores[u][t] = sum over d of q[u][d] * key[d][t], for N units and the 16 M tokens from `token` on.
template <int N, int M, class View>
inline void dot_keys(const float* const* q, const View& view, int token, bool ahead, float* scores,
                     int64_t stride) {
  using T = typename View::Number;
  constexpr int kStep = 4;
  const int64_t key_stride = view.key_stride();
  const T* keys[M];
  const T* beside[M];
  for (int m = 0; m < M; ++m) {
    keys[m] = view.key(token + m * kLanes);
    beside[m] = view.beside_key(token + m * kLanes);
  }
  F32x16 s[N][M];
#pragma GCC unroll 4
  for (int u = 0; u < N; ++u) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) s[u][m] = F32x16::zero();
  }
  for (int begin = 0; begin < view.head_dim; begin += kStep) {
    if (ahead) {
      for (int m = 0; m < M; ++m) prefetch(beside[m] + begin * kLanes, kStep * kLanes * sizeof(T));
    }
#pragma GCC unroll 4
    for (int d = begin; d < begin + kStep; ++d) {
      F32x16 k[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) k[m] = load16(keys[m] + d * key_stride);
#pragma GCC unroll 4
      for (int u = 0; u < N; ++u) {
        const F32x16 x = F32x16::broadcast(q[u][d]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) s[u][m] = fma(x, k[m], s[u][m]);
      }
    }
  }
  for (int u = 0; u < N; ++u) {
    for (int m = 0; m < M; ++m) s[u][m].store(scores + u * stride + m * kLanes);
  }
}

/// sums[u][d] = sums[u][d] * corrections[u] + sum over the first `tokens` t of weights[u][t] * value[t][d],
/// for N units and the 16 M dimensions from `first` on.
template <int N, int M, class View>
inline void add_values(const float* weights, int64_t stride, const float* corrections, const View& view,
                       int tokens, int first, bool ahead, float* sums) {
  using T = typename View::Number;
  const int64_t value_stride = view.value_stride();
  F32x16 a[N][M];
#pragma GCC unroll 4
  for (int u = 0; u < N; ++u) {
    const F32x16 correction = F32x16::broadcast(corrections[u]);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
      a[u][m] = F32x16::load(sums + u * view.head_dim + first + m * kLanes) * correction;
  }
  for (int block = 0, begin = 0; begin < tokens; ++block, begin += view.block_size) {
    const T* values[M];
    for (int m = 0; m < M; ++m) values[m] = view.value(block, first + m * kLanes);
    if (ahead) {
      prefetch(view.beside_value(block, first),
               M * kLanes * view.block_size * static_cast<int64_t>(sizeof(T)));
    }
    const float* w = weights + begin;
    const int count = tokens - begin < view.block_size ? tokens - begin : view.block_size;
    for (int t = 0; t < count; ++t) {
      F32x16 v[M];
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) v[m] = load16(values[m] + t * value_stride);
#pragma GCC unroll 4
      for (int u = 0; u < N; ++u) {
        const F32x16 x = F32x16::broadcast(w[u * stride + t]);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) a[u][m] = fma(x, v[m], a[u][m]);
      }
    }
  }
  for (int u = 0; u < N; ++u) {
    for (int m = 0; m < M; ++m) a[u][m].store(sums + u * view.head_dim + first + m * kLanes);
  }
}

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

/// Scores of the units from `begin` on to weights; tokens(u) is how many of the span's tokens unit u sees.
template <bool kScaled, class Tokens>
inline void soften(const Units& units, int begin, int vectors, Tokens&& tokens) {
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
      correction = F32x16::broadcast(1.0f);
    }
    total.store(units.totals + u * kLanes);
  }
}

/// One span for units from `begin` on; tokens(u) is how many of the span's tokens unit u sees, at least one.
template <bool kScaled, bool kAhead, class View, class Tokens>
inline void attend_span(const AttentionTile& tile, const Units& units, int begin, const View& view,
                        Tokens&& tokens) {
  const int dim = tile.head_dim, most = tokens(units.count - 1), vectors = (most + kLanes - 1) / kLanes;
  const int group = units.count - begin < kGroup ? units.count - begin : kGroup;

  for (int v = 0; v < vectors;) {
    const int wide = vectors_beside(group), m = v + wide <= vectors ? wide : 1;
    for (int u = begin; u < units.count; u += kGroup) {
      const int n = units.count - u < kGroup ? units.count - u : kGroup;
      const float* q[kGroup];
      for (int i = 0; i < n; ++i) {
        q[i] =
            tile.q + (u + i) / tile.group * tile.q_stride + static_cast<int64_t>((u + i) % tile.group) * dim;
      }
      with_sizes(n, m, [&](auto n_, auto m_) {
        dot_keys<decltype(n_)::value, decltype(m_)::value>(
            q, view, v * kLanes, kAhead && u == begin,
            units.scores + static_cast<int64_t>(u) * units.span + v * kLanes, units.span);
      });
    }
    v += m;
  }

  soften<kScaled>(units, begin, vectors, tokens);

  // Units that see as much run together: at the end of a prompt only the heads of a row do.
  const int alike = tokens(begin) == most ? group : (tile.group < group ? tile.group : group);
  for (int d = 0; d < dim;) {
    const int wide = vectors_beside(alike), m = d + wide * kLanes <= dim ? wide : 1;
    for (int u = begin; u < units.count;) {
      int n = 1;
      while (n < kGroup && (n + 1) * m <= kSums && u + n < units.count && tokens(u + n) == tokens(u)) ++n;
      with_sizes(n, m, [&](auto n_, auto m_) {
        add_values<decltype(n_)::value, decltype(m_)::value>(
            units.scores + static_cast<int64_t>(u) * units.span, units.span, units.corrections + u, view,
            tokens(u), d, kAhead && u == begin, units.sums + static_cast<int64_t>(u) * dim);
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
  const WidePages wide{dim, block, span, take(static_cast<int64_t>(dim) * span),
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
  const auto page = [&](const std::byte* pages, int b) {
    return reinterpret_cast<const T*>(pages + static_cast<int64_t>(tile.block_table[b]) *
                                                  static_cast<int64_t>(tile.block_bytes));
  };
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
    for (int i = 0; i < span_blocks && first_block + i < blocks; ++i) {
      const int b = first_block + i, after = b + span_blocks < blocks ? b + span_blocks : b;
      pages.keys[i] = page(tile.keys, b);
      pages.values[i] = page(tile.values, b);
      pages.next_keys[i] = page(tile.keys, after);
      if constexpr (kScaled) {
        prefetch(pages.next_keys[i] + numbers, block * static_cast<int64_t>(sizeof(float)));
        const auto* key_scales = reinterpret_cast<const float*>(pages.keys[i] + numbers);
        const auto* value_scales = reinterpret_cast<const float*>(pages.values[i] + numbers);
        for (int t = 0; t < block; t += kLanes) {
          (F32x16::load(key_scales + t) * F32x16::broadcast(tile.scale)).store(units.factors + i * block + t);
          F32x16::load(value_scales + t).store(units.value_scales + i * block + t);
        }
      }
    }
    if (sizeof(T) < sizeof(float) && count - begin > 2 * kGroup) {
      wide.fill(pages, tokens(count - 1));
      attend_span<kScaled, false>(tile, units, begin, wide, tokens);
    } else {
      attend_span<kScaled, true>(tile, units, begin, pages, tokens);
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

constexpr uint32_t kAllLanes = 0xffff;

/// Stores x[d] at to[d * stride]. False if a value is not finite.
inline bool store_floats(const float* x, int32_t head_dim, int64_t stride, float* to) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    ok = ok && finite(F32x16::load(x + d)) == kAllLanes;
    for (int i = d; i < d + kLanes; ++i) to[i * stride] = x[i];
  }
  return ok;
}

/// The same as float16; false if one is not finite as such.
inline bool store_halves(const float* x, int32_t head_dim, int64_t stride, uint16_t* to) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    uint16_t h[kLanes];
    F32x16::load(x + d).store_f16(h);
    ok = ok && finite(F32x16::load_f16(h)) == kAllLanes;
    for (int i = 0; i < kLanes; ++i) to[(d + i) * stride] = h[i];
  }
  return ok;
}

/// The same as integers, x[d] / scale rounded to nearest, ties to even. The scale is, of kScales from
/// max |x| / 127.4 up, the one of least squared error, which for 64 numbers is a tenth less than at max |x| /
/// 127. Where the scale would be below the normal floats, the numbers count as zeros.
inline bool store_integers(const float* x, int32_t head_dim, int64_t stride, int8_t* to, float* scale) {
  constexpr int kScales = 8;
  bool ok = true;
  F32x16 top = F32x16::zero();
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    const F32x16 v = F32x16::load(x + d);
    ok = ok && finite(v) == kAllLanes;
    top = max(abs(v), top);
  }
  if (!ok) return false;
  const float largest_number = largest(top);
  const F32x16 shift = F32x16::broadcast(0x1.8p23f);
  float inverse = 0, best = 0, least = __builtin_inff();
  for (int i = 0; i < kScales && largest_number >= 0x1p-119f; ++i) {
    const float levels = 127.4f - 0.4f * static_cast<float>(i), step = largest_number / levels;
    const F32x16 steps = F32x16::broadcast(step), inverses = F32x16::broadcast(levels / largest_number);
    // In units of the largest number, so that no square leaves the range of a float.
    const F32x16 unit = F32x16::broadcast(1 / largest_number);
    F32x16 error = F32x16::zero();
    for (int32_t d = 0; d < head_dim; d += kLanes) {
      const F32x16 v = F32x16::load(x + d), rounded = fma(v, inverses, shift) - shift;
      const F32x16 off = fma(negate(rounded), steps, v) * unit;
      error = fma(off, off, error);
    }
    const float total = sum(error);
    if (total < least) {
      least = total;
      best = step;
      inverse = levels / largest_number;
    }
  }
  *scale = best;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    float rounded[kLanes];
    (fma(F32x16::load(x + d), F32x16::broadcast(inverse), shift) - shift).store(rounded);
    for (int i = 0; i < kLanes; ++i) to[(d + i) * stride] = static_cast<int8_t>(rounded[i]);
  }
  return true;
}

/// Stores a token whose numbers begin at `at` of its page, `stride` apart.
inline bool store_token(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, int64_t at,
                        int64_t stride, KvType type, std::byte* page) {
  switch (type) {
    case KvType::kF16:
      return store_halves(x, head_dim, stride, reinterpret_cast<uint16_t*>(page) + at);
    case KvType::kF32:
      return store_floats(x, head_dim, stride, reinterpret_cast<float*>(page) + at);
    case KvType::kQ8: {
      auto* scales = reinterpret_cast<float*>(page + static_cast<int64_t>(head_dim) * block_size);
      return store_integers(x, head_dim, stride, reinterpret_cast<int8_t*>(page) + at, scales + slot);
    }
  }
  return false;
}

bool store_key(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
               std::byte* page) {
  return store_token(x, head_dim, block_size, slot, slot, block_size, type, page);
}

bool store_value(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, KvType type,
                 std::byte* page) {
  return store_token(x, head_dim, block_size, slot, static_cast<int64_t>(slot) * head_dim, 1, type, page);
}

}  // namespace
}  // namespace niwaki
