#pragma once
#include <cstdint>

namespace niwaki {

/// Kernels of one row; x, y and weights are plain float arrays of any alignment.
struct RowKernels {
  /// y = x / sqrt(mean(x^2) + eps) * weight; y may be x. False if the sum of squares is NaN or infinite.
  bool (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);

  /// The same over one head, in place, then NeoX RoPE with `rope` = cos (head_dim/2) | sin (head_dim/2).
  bool (*norm_rope)(float* head, const float* weight, float eps, const float* rope, int32_t head_dim);

  /// The lowest index of the largest of n > 0 values, where NaN counts as nothing. `finite` tells whether all
  /// are.
  int64_t (*argmax)(const float* x, int64_t n, bool* finite);

  /// Weights exp((x - max) / temperature) of n values, into `weights` unless it is null, and the sum of every
  /// run of kSumRun of them (the last one shorter) into `sums`: lane i mod 16 ascending, in double, lanes as
  /// a tree.
  void (*exp_weights)(const float* x, int64_t n, float max, float temperature, float* weights, double* sums);

  /// Indices from `begin` on of values over `threshold`, ascending, into `ids`, which has room for `room`
  /// >= 16. Stops when fewer than 16 places are left; returns how many were written and sets `begin` to where
  /// to go on (n at the end).
  int64_t (*above)(const float* x, int64_t n, float threshold, int64_t* begin, int32_t* ids, int64_t room);
};

constexpr int64_t kSumRun = 1024;

extern const RowKernels kPortableRowKernels;
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;
extern const RowKernels kNeonRowKernels;

}  // namespace niwaki
