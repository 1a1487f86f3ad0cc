// TrainingKernels::multiply over F32x16; see training_kernels_impl.h.
#pragma once
#include "cpu/simd.h"
#include "cpu/training/training_kernels.h"

namespace niwaki {
namespace {

// A tile's sums stay in registers: 24 of 32, or 12 of 16.
#if defined(NIWAKI_SIMD_AVX512)
constexpr int kTileVectors = 4;
constexpr int kTileRows = 6;
constexpr int kNarrowTileRows = 12;
#else
constexpr int kTileVectors = 1;
constexpr int kTileRows = 6;
constexpr int kNarrowTileRows = 6;
#endif

template <int kRows, int kVectors>
inline void multiply_tile(Factor x, const float* panel, int64_t panel_stride, int64_t depth, float scale,
                          bool accumulate, float* y, int64_t y_stride) {
  F32x16 sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = F32x16::zero();
  }
  for (int64_t d = 0; d < depth; ++d) {
    F32x16 line[kVectors];
    for (int v = 0; v < kVectors; ++v) line[v] = F32x16::load(panel + d * panel_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const F32x16 factor = F32x16::broadcast(x.data[r * x.row_stride + d * x.depth_stride]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(factor, line[v], sums[r][v]);
    }
  }
  const F32x16 s = F32x16::broadcast(scale);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* out = y + r * y_stride + v * kLanes;
      (accumulate ? fma(sums[r][v], s, F32x16::load(out)) : sums[r][v] * s).store(out);
    }
  }
}

/// All rows times kVectors vectors of columns: tiles of kRows, the last ones of fewer.
template <int kRows, int kVectors>
inline void multiply_columns(Factor x, const float* panel, int64_t panel_stride, int64_t rows, int64_t depth,
                             float scale, bool accumulate, float* y, int64_t y_stride) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    multiply_tile<kRows, kVectors>({x.data + r * x.row_stride, x.row_stride, x.depth_stride}, panel,
                                   panel_stride, depth, scale, accumulate, y + r * y_stride, y_stride);
  }
  if constexpr (kRows > 1) {
    if (r < rows) {
      multiply_columns<kRows / 2, kVectors>({x.data + r * x.row_stride, x.row_stride, x.depth_stride}, panel,
                                            panel_stride, rows - r, depth, scale, accumulate,
                                            y + r * y_stride, y_stride);
    }
  }
}

void multiply(Factor x, const float* panel, int64_t panel_stride, int64_t rows, int64_t columns,
              int64_t depth, float scale, bool accumulate, float* y, int64_t y_stride) {
  for (int64_t first = 0; first < depth; first += kDepthRun) {
    const int64_t run = depth - first < kDepthRun ? depth - first : kDepthRun;
    const bool add = accumulate || first > 0;
    const Factor factor{x.data + first * x.depth_stride, x.row_stride, x.depth_stride};
    const float* lines = panel + first * panel_stride;
    int64_t c = 0;
    if constexpr (kTileVectors > 1) {
      for (; c + kTileVectors * kLanes <= columns; c += kTileVectors * kLanes) {
        multiply_columns<kTileRows, kTileVectors>(factor, lines + c, panel_stride, rows, run, scale, add,
                                                  y + c, y_stride);
      }
    }
    for (; c < columns; c += kLanes) {
      multiply_columns<kNarrowTileRows, 1>(factor, lines + c, panel_stride, rows, run, scale, add, y + c,
                                           y_stride);
    }
  }
}

}  // namespace
}  // namespace niwaki
