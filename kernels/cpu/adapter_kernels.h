#pragma once
#include <cstdint>

#include "niwaki/adapter.h"
#include "niwaki/data_type.h"

namespace niwaki {

/// Rows of a step that one call of an adapter kernel takes at most, and ranks that one call of `project`
/// does. Ranks are padded to a multiple of them, and what the padding holds reaches no result.
constexpr int kAdapterRows = 16;
constexpr int kAdapterRanks = 4;

/// One adapter of a mix, at a tensor.
struct AdapterTerm {
  const uint8_t* b;        // packed
  int32_t rank;            // 0: it does not touch this tensor
  float weight;            // in the mix
  float scale;             // of B A
  const float* row_scale;  // f of DoRA, or null
};

/// Low-rank adapters of the matrices of a plan. As everywhere, a row of the step is computed alone: sums over
/// columns in 16 lanes as tier.h says, sums over ranks ascending.
///
///   A: [rank / 4][columns / 16][4][16]: lanes are columns, the last columns zero padded; one stream for the
///      four ranks of a call
///   B: [rows / 16][rank][16]: lanes are rows, the last rows zero padded
struct AdapterKernels {
  /// Raises largest[c] to the magnitude of every value of column c; values are [rows][columns] of kF32, kF16
  /// or kBF16. False if one of them is NaN or infinite.
  bool (*largest_of_columns)(DataType type, const uint8_t* values, int64_t rows, int64_t columns,
                             float* largest);

  /// The largest magnitude of `count` values; NaN if one of them is NaN or infinite.
  float (*largest_value)(DataType type, const uint8_t* values, int64_t count);

  /// One row of A, into every fourth sixteen values from `to` on. Integers are the values times `inverse`,
  /// rounded to nearest even.
  void (*pack_a)(AdapterType type, DataType from_type, const uint8_t* from, int64_t columns, float inverse,
                 uint8_t* to);

  /// Sixteen rows of B, of which the first `rows` are there; `inverse` is of each rank.
  void (*pack_b)(AdapterType type, DataType from_type, const uint8_t* from, int rows, int rank,
                 const float* inverse, uint8_t* to);

  /// t[i][k] = scales[k] * (row k of A) x[i], for kAdapterRanks rows of A and `rows` <= kAdapterRows rows of
  /// the step.
  void (*project)(AdapterType type, const uint8_t* a, int64_t columns, const float* scales,
                  const float* const* x, int rows, float* const* t);

  /// Adds the terms in their order to y[i], 16 * `blocks` values of base = W x from block `first` of the
  /// tensor on, for each of `rows` <= kAdapterRows rows: with z = B t, ranks ascending by fma from 0,
  ///   y = fma(weight scale, z, y), or for DoRA
  ///   y = fma(weight, fma(f - 1, base, (f scale) z), y).
  /// The ranks of term j begin at t[i] + j * t_stride.
  void (*add)(AdapterType type, const AdapterTerm* terms, int count, int64_t first, int64_t blocks,
              const float* const* t, int64_t t_stride, int rows, float* const* y);

  /// ||w + s b A|| of one row w of `columns` weights: a is float32 [rank][a_stride], zero beyond the columns,
  /// as is w; sb is s times the row of B. Each weight is summed over ranks ascending by fma, squares as in
  /// RMSNorm.
  float (*row_norm)(const float* w, int64_t columns, const float* a, int64_t a_stride, const float* sb,
                    int rank);

  /// `count` values as floats.
  void (*widen)(DataType type, const uint8_t* from, int64_t count, float* to);
};

extern const AdapterKernels kPortableAdapterKernels;
extern const AdapterKernels kAvx2AdapterKernels;
extern const AdapterKernels kAvx512AdapterKernels;
extern const AdapterKernels kNeonAdapterKernels;

}  // namespace niwaki
