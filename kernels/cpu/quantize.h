// The one activation quantiser, written once and compiled for every tier: include it in a tier's .cpp after
// cpu/simd.h.
#pragma once
#include "cpu/linear_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

/// See LinearKernels::quantize. scale = 1 / inverse with
///
///   inverse = min(511 / max|x|, 32700 / sum|x|, 2^125)
///
/// Rounding adds at most 64 to a group's sum, which leaves 32,703; three more are left for the sum's own
/// rounding. The sum is taken of |x| / 128, so that no finite group overflows it, and the last bound keeps
/// the scale a normal float.
inline bool quantize_group(const float* x, int count, int16_t* quanta, float* scale) {
  alignas(64) float padded[kGroupColumns];
  if (count < kGroupColumns) {
    for (int i = 0; i < kGroupColumns; ++i) padded[i] = i < count ? x[i] : 0.0f;
    x = padded;
  }
  F32x16 peak = F32x16::zero(), total = F32x16::zero();
  for (int i = 0; i < kGroupColumns; i += kLanes) {
    const F32x16 magnitude = abs(F32x16::load(x + i));
    peak = max(peak, magnitude);
    total = total + magnitude * F32x16::broadcast(0x1p-7f);
  }
  const float mean = sum(total);
  if (!(mean <= 0x1.fffffep127f)) return false;
  const float maximum = largest(peak);
  if (maximum == 0.0f) {
    for (int i = 0; i < kGroupColumns; ++i) quanta[i] = 0;
    *scale = 0.0f;
    return true;
  }
  float inverse = 0x1p125f;
  const float by_maximum = 511.0f / maximum, by_sum = (32700.0f / 128.0f) / mean;
  if (by_maximum < inverse) inverse = by_maximum;
  if (by_sum < inverse) inverse = by_sum;
  const F32x16 factor = F32x16::broadcast(inverse);
  for (int i = 0; i < kGroupColumns; i += kLanes) (F32x16::load(x + i) * factor).store_i16(quanta + i);
  *scale = 1.0f / inverse;
  return true;
}

}  // namespace
}  // namespace niwaki
