#pragma once
// How many units a block of the attention kernel takes; for attention*.cu alone.
#include <cstdint>

#include "cuda/runtime.h"

namespace niwaki::cuda {

/// Units that all warps of a block share: they split the tokens of the scores and the dimensions of the sums.
constexpr int32_t kNarrowUnits = 16;
/// Units with a tile of sixteen for each warp.
constexpr int32_t kWideUnits = 64;

/// Rows of a sequence that a fused item may have.
constexpr int32_t kFreshTokens = 4;

/// Whether a warp's registers hold the sums of sixteen units, for which the kernel is made for the head_dim.
__host__ __device__ constexpr bool has_wide(int32_t head_dim) {
  return head_dim == 64 || head_dim == 128;
}
constexpr int32_t most_units(int32_t head_dim, bool wide) {
  return wide && has_wide(head_dim) ? kWideUnits : kNarrowUnits;
}

}  // namespace niwaki::cuda
