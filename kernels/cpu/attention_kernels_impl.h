// The kernels of attention_kernels.h over F32x16; a tier's attention.cpp includes this after choosing its
// simd.h.
//
// A unit is one (row, query head). Units run in groups of up to kGroup, which share every load of a page and
// give the processor independent sums; which units share a group changes no bit.
#pragma once
#include "cpu/attention_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

constexpr int kGroup = 4;

inline F32x16 load16(const float* p) {
  return F32x16::load(p);
}
inline F32x16 load16(const uint16_t* p) {
  return F32x16::load_f16(p);
}

/// scores[u][t] = sum over d of q[u][d] * keys[d][t], for N units and all tokens of a block.
template <int N, class Page>
inline void dot_keys(const float* const* q, const Page* keys, int head_dim, int block_size, float* scores) {
  for (int t = 0; t < block_size; t += kLanes) {
    F32x16 s[N];
    for (int u = 0; u < N; ++u) s[u] = F32x16::zero();
    for (int d = 0; d < head_dim; ++d) {
      const F32x16 k = load16(keys + static_cast<int64_t>(d) * block_size + t);
      for (int u = 0; u < N; ++u) s[u] = fma(F32x16::broadcast(q[u][d]), k, s[u]);
    }
    for (int u = 0; u < N; ++u) s[u].store(scores + u * block_size + t);
  }
}

/// sums[u] = sums[u] * corrections[u] + sum over the first `tokens` t of weights[u][t] * values[t], for N
/// units.
template <int N, class Page>
inline void add_values(const float* weights, const float* corrections, const Page* values, int tokens,
                       int head_dim, int block_size, float* sums) {
  for (int d = 0; d < head_dim; d += kLanes) {
    F32x16 a[N];
    for (int u = 0; u < N; ++u)
      a[u] = F32x16::load(sums + u * head_dim + d) * F32x16::broadcast(corrections[u]);
    for (int t = 0; t < tokens; ++t) {
      const F32x16 v = load16(values + static_cast<int64_t>(t) * head_dim + d);
      for (int u = 0; u < N; ++u) a[u] = fma(F32x16::broadcast(weights[u * block_size + t]), v, a[u]);
    }
    for (int u = 0; u < N; ++u) a[u].store(sums + u * head_dim + d);
  }
}

template <int N>
struct Size {
  static constexpr int value = N;
};

/// Calls f with the size of a group as a constant.
template <class F>
inline void with_size(int n, F&& f) {
  switch (n) {
    case 1:
      return f(Size<1>{});
    case 2:
      return f(Size<2>{});
    case 3:
      return f(Size<3>{});
    default:
      return f(Size<kGroup>{});
  }
}

struct Units {
  int count;
  float* sums;    // [unit][head_dim]
  float* scores;  // [unit][block_size], then the weights
  float* totals;  // [unit][16]
  float* maxima;  // [unit], padded to 16, as the two below
  float* new_maxima;
  float* corrections;
};

/// One block for units from `begin` on; tokens(u) is how many of the block's tokens unit u sees, at least
/// one.
template <class Page, class Tokens>
inline void attend_block(const AttentionTile& tile, const Units& units, int begin, const Page* keys,
                         const Page* values, Tokens&& tokens) {
  const int dim = tile.head_dim, block = tile.block_size;
  const F32x16 scale = F32x16::broadcast(tile.scale), lowest = F32x16::broadcast(-__builtin_inff());

  for (int u = begin; u < units.count; u += kGroup) {
    const int n = units.count - u < kGroup ? units.count - u : kGroup;
    const float* q[kGroup];
    for (int i = 0; i < n; ++i) {
      q[i] = tile.q + (u + i) / tile.group * tile.q_stride + static_cast<int64_t>((u + i) % tile.group) * dim;
    }
    with_size(n, [&](auto size) {
      dot_keys<decltype(size)::value>(q, keys, dim, block, units.scores + u * block);
    });
  }

  for (int u = begin; u < units.count; ++u) {
    float* s = units.scores + u * block;
    F32x16 top = F32x16::broadcast(units.maxima[u]);
    for (int t = 0; t < block; t += kLanes) {
      const F32x16 masked = first(tokens(u) - t, F32x16::load(s + t) * scale, lowest);
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
    float* s = units.scores + u * block;
    const F32x16 top = F32x16::broadcast(units.maxima[u]);
    F32x16 total = F32x16::load(units.totals + u * kLanes);
    F32x16 correction = F32x16::broadcast(units.corrections[u]);
    for (int t = 0; t < block; t += kLanes) {
      const F32x16 weight = exp(F32x16::load(s + t) - top);
      weight.store(s + t);
      total = fma(total, correction, weight);
      correction = F32x16::broadcast(1.0f);
    }
    total.store(units.totals + u * kLanes);
  }

  for (int u = begin; u < units.count;) {
    int n = 1;
    while (n < kGroup && u + n < units.count && tokens(u + n) == tokens(u)) ++n;
    with_size(n, [&](auto size) {
      add_values<decltype(size)::value>(units.scores + u * block, units.corrections + u, values, tokens(u),
                                        dim, block, units.sums + u * dim);
    });
    u += n;
  }
}

template <class Page>
inline void attend_pages(const AttentionTile& tile) {
  const int dim = tile.head_dim, block = tile.block_size;
  const int count = tile.rows * tile.group, padded = (count + kLanes - 1) / kLanes * kLanes;
  float* next = tile.scratch;
  const auto take = [&next](int64_t n) {
    float* p = next;
    next += n;
    return p;
  };
  float* wide_keys = take(static_cast<int64_t>(dim) * block);
  float* wide_values = take(static_cast<int64_t>(dim) * block);
  Units units;
  units.count = count;
  units.sums = take(static_cast<int64_t>(count) * dim);
  units.scores = take(static_cast<int64_t>(count) * block);
  units.totals = take(static_cast<int64_t>(count) * kLanes);
  units.maxima = take(padded);
  units.new_maxima = take(padded);
  units.corrections = take(padded);
  for (int64_t i = 0; i < static_cast<int64_t>(count) * dim; ++i) units.sums[i] = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(count) * kLanes; ++i) units.totals[i] = 0;
  for (int i = 0; i < padded; ++i) units.maxima[i] = units.new_maxima[i] = -__builtin_inff();

  const int last_position = tile.first_position + tile.rows - 1;
  for (int b = 0; b <= last_position / block; ++b) {
    const int start = b * block;
    const int64_t offset = static_cast<int64_t>(tile.block_table[b]) * static_cast<int64_t>(tile.block_bytes);
    const Page* keys = reinterpret_cast<const Page*>(tile.keys + offset);
    const Page* values = reinterpret_cast<const Page*>(tile.values + offset);
    // Rows that end before this block have nothing left to see.
    const int begin = start > tile.first_position ? (start - tile.first_position) * tile.group : 0;
    const auto tokens = [&](int u) {
      const int seen = tile.first_position + u / tile.group - start + 1;
      return seen < block ? seen : block;
    };
    if (sizeof(Page) == sizeof(uint16_t) && count - begin > 2 * kGroup) {
      // Many units: widen the pages once for all of them, as far as they are written.
      const int written = tokens(count - 1);
      for (int64_t i = 0; i < static_cast<int64_t>(dim) * block; i += kLanes)
        load16(keys + i).store(wide_keys + i);
      for (int64_t i = 0; i < static_cast<int64_t>(written) * dim; i += kLanes)
        load16(values + i).store(wide_values + i);
      attend_block<float>(tile, units, begin, wide_keys, wide_values, tokens);
    } else {
      attend_block<Page>(tile, units, begin, keys, values, tokens);
    }
  }

  for (int u = 0; u < count; ++u) {
    const F32x16 inverse = F32x16::broadcast(1.0f / sum(F32x16::load(units.totals + u * kLanes)));
    float* out = tile.out + u / tile.group * tile.out_stride + static_cast<int64_t>(u % tile.group) * dim;
    for (int d = 0; d < dim; d += kLanes) (F32x16::load(units.sums + u * dim + d) * inverse).store(out + d);
  }
}

void attend(const AttentionTile& tile) {
  if (tile.half) {
    attend_pages<uint16_t>(tile);
  } else {
    attend_pages<float>(tile);
  }
}

constexpr uint32_t kAllLanes = 0xffff;

bool store_key(const float* x, int32_t head_dim, int32_t block_size, int32_t slot, bool half,
               std::byte* page) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    F32x16 v = F32x16::load(x + d);
    if (half) {
      uint16_t h[kLanes];
      v.store_f16(h);
      v = F32x16::load_f16(h);
      uint16_t* to = reinterpret_cast<uint16_t*>(page) + static_cast<int64_t>(d) * block_size + slot;
      for (int i = 0; i < kLanes; ++i) to[static_cast<int64_t>(i) * block_size] = h[i];
    } else {
      float* to = reinterpret_cast<float*>(page) + static_cast<int64_t>(d) * block_size + slot;
      for (int i = 0; i < kLanes; ++i) to[static_cast<int64_t>(i) * block_size] = x[d + i];
    }
    ok = ok && finite(v) == kAllLanes;
  }
  return ok;
}

bool store_value(const float* x, int32_t head_dim, int32_t slot, bool half, std::byte* page) {
  bool ok = true;
  for (int32_t d = 0; d < head_dim; d += kLanes) {
    F32x16 v = F32x16::load(x + d);
    if (half) {
      uint16_t* to = reinterpret_cast<uint16_t*>(page) + static_cast<int64_t>(slot) * head_dim + d;
      v.store_f16(to);
      v = F32x16::load_f16(to);
    } else {
      v.store(reinterpret_cast<float*>(page) + static_cast<int64_t>(slot) * head_dim + d);
    }
    ok = ok && finite(v) == kAllLanes;
  }
  return ok;
}

}  // namespace
}  // namespace niwaki
