// The kernels of adapter_kernels.h over F32x16; a tier's adapters.cpp includes this after choosing its
// simd.h.
#pragma once
#include "cpu/adapter_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

// --- What lies in a file, of any alignment

template <DataType kType>
constexpr int kValueBytes = kType == DataType::kF32 ? 4 : 2;

/// The first n <= 16 values; the other lanes are zero.
template <DataType kType>
inline F32x16 load_values(const uint8_t* from, int n) {
  alignas(64) uint8_t bytes[kLanes * 4];
  if (n == kLanes) {
    std::memcpy(bytes, from, kLanes * kValueBytes<kType>);
  } else {
    std::memset(bytes, 0, sizeof bytes);
    std::memcpy(bytes, from, static_cast<size_t>(n * kValueBytes<kType>));
  }
  if constexpr (kType == DataType::kF32) {
    return F32x16::load(reinterpret_cast<const float*>(bytes));
  } else if constexpr (kType == DataType::kF16) {
    return F32x16::load_f16(reinterpret_cast<const uint16_t*>(bytes));
  } else {
    return F32x16::load_bf16(reinterpret_cast<const uint16_t*>(bytes));
  }
}

template <DataType kType>
struct Values {
  static constexpr DataType type = kType;
};

/// Calls f with the Values of a type.
template <class F>
inline auto with_values(DataType type, F&& f) {
  switch (type) {
    case DataType::kF32:
      return f(Values<DataType::kF32>{});
    case DataType::kF16:
      return f(Values<DataType::kF16>{});
    default:
      return f(Values<DataType::kBF16>{});
  }
}

inline int lanes_left(int64_t count) {
  return count < kLanes ? static_cast<int>(count) : kLanes;
}

bool largest_of_columns(DataType type, const uint8_t* values, int64_t rows, int64_t columns, float* largest) {
  return with_values(type, [&](auto tag) {
    constexpr DataType kType = decltype(tag)::type;
    F32x16 spoiled = F32x16::zero();  // NaN once a value is not finite
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int n = lanes_left(columns - c);
      F32x16 top = load_first(largest + c, n);
      for (int64_t r = 0; r < rows; ++r) {
        const F32x16 v = load_values<kType>(values + (r * columns + c) * kValueBytes<kType>, n);
        spoiled = spoiled + (v - v);
        top = max(abs(v), top);
      }
      store_first(top, largest + c, n);
    }
    return sum(spoiled) == 0;
  });
}

float largest_value(DataType type, const uint8_t* values, int64_t count) {
  return with_values(type, [&](auto tag) {
    constexpr DataType kType = decltype(tag)::type;
    F32x16 spoiled = F32x16::zero(), top = F32x16::zero();
    for (int64_t i = 0; i < count; i += kLanes) {
      const F32x16 v = load_values<kType>(values + i * kValueBytes<kType>, lanes_left(count - i));
      spoiled = spoiled + (v - v);
      top = max(abs(v), top);
    }
    return largest(top) + sum(spoiled);
  });
}

void widen(DataType type, const uint8_t* from, int64_t count, float* to) {
  with_values(type, [&](auto tag) {
    constexpr DataType kType = decltype(tag)::type;
    for (int64_t i = 0; i < count; i += kLanes) {
      const int n = lanes_left(count - i);
      store_first(load_values<kType>(from + i * kValueBytes<kType>, n), to + i, n);
    }
  });
}

// --- What lies in a slot

template <AdapterType kType>
constexpr int kSlotBytes = kType == AdapterType::kF16 ? 2 : 1;

template <AdapterType kType>
inline F32x16 load_slot(const uint8_t* p) {
  if constexpr (kType == AdapterType::kF16) {
    return F32x16::load_f16(reinterpret_cast<const uint16_t*>(p));
  } else {
    return F32x16::load_i8(reinterpret_cast<const int8_t*>(p));
  }
}

/// Integers are rounded to nearest even, by adding what leaves them in a float's last bits.
template <AdapterType kType>
inline void store_slot(F32x16 x, uint8_t* p) {
  if constexpr (kType == AdapterType::kF16) {
    x.store_f16(reinterpret_cast<uint16_t*>(p));
  } else {
    alignas(64) float shifted[kLanes];
    uint32_t bits[kLanes];
    (x + F32x16::broadcast(0x1.8p23f)).store(shifted);
    std::memcpy(bits, shifted, sizeof bits);
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(bits[i]);
  }
}

template <AdapterType kType, DataType kFrom>
inline void pack_row(const uint8_t* from, int64_t columns, float inverse, uint8_t* to) {
  const F32x16 factor = F32x16::broadcast(inverse);
  for (int64_t c = 0; c < columns; c += kLanes) {
    F32x16 v = load_values<kFrom>(from + c * kValueBytes<kFrom>, lanes_left(columns - c));
    if constexpr (kType == AdapterType::kI8) v = v * factor;
    store_slot<kType>(v, to + c * kAdapterRanks * kSlotBytes<kType>);
  }
}

template <AdapterType kType, DataType kFrom>
inline void pack_rows(const uint8_t* from, int rows, int rank, const float* inverse, uint8_t* to) {
  alignas(64) float tile[kLanes][kLanes] = {};
  for (int first = 0; first < rank; first += kLanes) {
    const int n = lanes_left(rank - first);
    for (int r = 0; r < rows; ++r)
      load_values<kFrom>(from + (r * rank + first) * kValueBytes<kFrom>, n).store(tile[r]);
    for (int k = 0; k < n; ++k) {
      alignas(64) float column[kLanes];
      for (int r = 0; r < kLanes; ++r) column[r] = tile[r][k];
      F32x16 v = F32x16::load(column);
      if constexpr (kType == AdapterType::kI8) v = v * F32x16::broadcast(inverse[first + k]);
      store_slot<kType>(v, to + (first + k) * kLanes * kSlotBytes<kType>);
    }
  }
}

void pack_a(AdapterType type, DataType from_type, const uint8_t* from, int64_t columns, float inverse,
            uint8_t* to) {
  with_values(from_type, [&](auto tag) {
    constexpr DataType kFrom = decltype(tag)::type;
    type == AdapterType::kF16 ? pack_row<AdapterType::kF16, kFrom>(from, columns, inverse, to)
                              : pack_row<AdapterType::kI8, kFrom>(from, columns, inverse, to);
  });
}

void pack_b(AdapterType type, DataType from_type, const uint8_t* from, int rows, int rank,
            const float* inverse, uint8_t* to) {
  with_values(from_type, [&](auto tag) {
    constexpr DataType kFrom = decltype(tag)::type;
    type == AdapterType::kF16 ? pack_rows<AdapterType::kF16, kFrom>(from, rows, rank, inverse, to)
                              : pack_rows<AdapterType::kI8, kFrom>(from, rows, rank, inverse, to);
  });
}

// --- A step

/// Rows of the step that are taken together at most; with one, so many times sixteen rows of the tensor.
#if defined(NIWAKI_SIMD_AVX512)
constexpr int kAtOnce = 4;
#else
constexpr int kAtOnce = 2;
#endif

template <int kRows>
struct Rows {
  static constexpr int count = kRows;
};

/// Calls f with the first of some rows of the step and the Rows that it is to take, until all are taken.
template <class F>
inline void by_rows(int rows, F&& f) {
  int i = 0;
  if constexpr (kAtOnce == 4) {
    for (; i + 4 <= rows; i += 4) f(i, Rows<4>{});
  }
  for (; i + 2 <= rows; i += 2) f(i, Rows<2>{});
  if (i < rows) f(i, Rows<1>{});
}

/// Four rows of A times kRows rows of the step.
template <AdapterType kType, int kRows>
inline void project_tile(const uint8_t* a, int64_t columns, const float* scales, const float* const* x,
                         float* const* t) {
  // So far ahead A is asked for; past its end comes what is read next, or something harmless.
  constexpr int kAhead = 4096, kBytes = kLanes * kSlotBytes<kType>;
  F32x16 sums[kAdapterRanks][kRows];
  for (int k = 0; k < kAdapterRanks; ++k) {
    for (int i = 0; i < kRows; ++i) sums[k][i] = F32x16::zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes, a += kAdapterRanks * kBytes) {
    for (int at = 0; at < kAdapterRanks * kBytes; at += 64) __builtin_prefetch(a + kAhead + at);
    for (int k = 0; k < kAdapterRanks; ++k) {
      const F32x16 w = load_slot<kType>(a + k * kBytes);
      for (int i = 0; i < kRows; ++i) sums[k][i] = fma(w, F32x16::load(x[i] + c), sums[k][i]);
    }
  }
  if (c < columns) {
    const int n = static_cast<int>(columns - c);
    for (int k = 0; k < kAdapterRanks; ++k) {
      const F32x16 w = load_slot<kType>(a + k * kBytes);
      for (int i = 0; i < kRows; ++i) sums[k][i] = fma(w, load_first(x[i] + c, n), sums[k][i]);
    }
  }
  for (int k = 0; k < kAdapterRanks; ++k) {
    for (int i = 0; i < kRows; ++i) t[i][k] = sum(sums[k][i]) * scales[k];
  }
}

void project(AdapterType type, const uint8_t* a, int64_t columns, const float* scales, const float* const* x,
             int rows, float* const* t) {
  by_rows(rows, [&](int i, auto tag) {
    constexpr int kRows = decltype(tag)::count;
    type == AdapterType::kF16 ? project_tile<AdapterType::kF16, kRows>(a, columns, scales, x + i, t + i)
                              : project_tile<AdapterType::kI8, kRows>(a, columns, scales, x + i, t + i);
  });
}

/// kBlocks times sixteen rows of the tensor, kRows rows of the step; y begins at block `first`.
template <AdapterType kType, int kRows, int kBlocks>
inline void add_tile(const AdapterTerm* terms, int count, int64_t first, int64_t block, const float* const* t,
                     int64_t t_stride, float* const* y) {
  constexpr int kBytes = kLanes * kSlotBytes<kType>;
  F32x16 bases[kRows][kBlocks], sums[kRows][kBlocks];
  for (int i = 0; i < kRows; ++i) {
    for (int n = 0; n < kBlocks; ++n)
      sums[i][n] = bases[i][n] = F32x16::load(y[i] + (block - first + n) * kLanes);
  }
  for (int j = 0; j < count; ++j) {
    const AdapterTerm& term = terms[j];
    if (term.rank == 0) continue;
    const int64_t block_bytes = int64_t{term.rank} * kBytes;
    const uint8_t* b = term.b + block * block_bytes;
    F32x16 z[kRows][kBlocks];
    for (int i = 0; i < kRows; ++i) {
      for (int n = 0; n < kBlocks; ++n) z[i][n] = F32x16::zero();
    }
    for (int k = 0; k < term.rank; ++k, b += kBytes) {
      for (int n = 0; n < kBlocks; ++n) {
        const F32x16 w = load_slot<kType>(b + n * block_bytes);
        for (int i = 0; i < kRows; ++i) z[i][n] = fma(w, F32x16::broadcast(t[i][j * t_stride + k]), z[i][n]);
      }
    }
    const F32x16 weight = F32x16::broadcast(term.weight);
    for (int n = 0; n < kBlocks; ++n) {
      if (term.row_scale == nullptr) {
        const F32x16 factor = F32x16::broadcast(term.weight * term.scale);
        for (int i = 0; i < kRows; ++i) sums[i][n] = fma(factor, z[i][n], sums[i][n]);
      } else {
        const F32x16 f = F32x16::load(term.row_scale + (block + n) * kLanes);
        const F32x16 change = f - F32x16::broadcast(1.0f), factor = f * F32x16::broadcast(term.scale);
        for (int i = 0; i < kRows; ++i)
          sums[i][n] = fma(weight, fma(change, bases[i][n], factor * z[i][n]), sums[i][n]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int n = 0; n < kBlocks; ++n) sums[i][n].store(y[i] + (block - first + n) * kLanes);
  }
}

/// Fewer rows of the step take more blocks at a time, so that there are always independent sums.
template <AdapterType kType>
inline void add_type(const AdapterTerm* terms, int count, int64_t first, int64_t blocks,
                     const float* const* t, int64_t t_stride, int rows, float* const* y) {
  const int64_t end = first + blocks;
  for (int64_t begin = first; begin < end; begin += kAtOnce) {
    // By now B lies in the second-level cache: the weights have gone through the first.
    for (int j = 0; j < count; ++j) {
      const int64_t bytes = int64_t{terms[j].rank} * kLanes * kSlotBytes<kType>;
      const uint8_t* next = terms[j].b + (begin + kAtOnce) * bytes;
      for (int64_t at = 0; at < kAtOnce * bytes; at += 64) __builtin_prefetch(next + at);
    }
    by_rows(rows, [&](int i, auto tag) {
      constexpr int kRows = decltype(tag)::count, kBlocks = kAtOnce / kRows;
      const int64_t stop = begin + kAtOnce < end ? begin + kAtOnce : end;
      int64_t block = begin;
      for (; block + kBlocks <= stop; block += kBlocks)
        add_tile<kType, kRows, kBlocks>(terms, count, first, block, t + i, t_stride, y + i);
      for (; block < stop; ++block)
        add_tile<kType, kRows, 1>(terms, count, first, block, t + i, t_stride, y + i);
    });
  }
}

void add(AdapterType type, const AdapterTerm* terms, int count, int64_t first, int64_t blocks,
         const float* const* t, int64_t t_stride, int rows, float* const* y) {
  type == AdapterType::kF16 ? add_type<AdapterType::kF16>(terms, count, first, blocks, t, t_stride, rows, y)
                            : add_type<AdapterType::kI8>(terms, count, first, blocks, t, t_stride, rows, y);
}

float row_norm(const float* w, int64_t columns, const float* a, int64_t a_stride, const float* sb, int rank) {
  F32x16 squares = F32x16::zero();
  for (int64_t c = 0; c < columns; c += kLanes) {
    F32x16 v = F32x16::load(w + c);
    for (int k = 0; k < rank; ++k) v = fma(F32x16::broadcast(sb[k]), F32x16::load(a + k * a_stride + c), v);
    squares = fma(v, v, squares);
  }
  return square_root(sum(squares));
}

}  // namespace
}  // namespace niwaki
