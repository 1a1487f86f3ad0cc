#pragma once
// The operations of a plan on heads before attention: angles, norm and rotation, the store of keys and
// values.
#include <cstdint>

#include "cuda/kv_cache.h"
#include "cuda/step_view.h"
#include "niwaki/plan.h"

namespace niwaki::cuda {

/// cos (head_dim/2) | sin (head_dim/2) of the position of each row, times `factor`.
struct RopeTable {
  const double* frequencies;  // [head_dim/2]: Rope::frequencies, in device memory
  double factor;              // Rope::factor
  int32_t head_dim;
  float* out;  // [rows][stride]
  int64_t stride;
};
/// `rows`: that the launch is for; those beyond the step's are left as they are. So below.
void launch_rope_table(const StepView& step, const RopeTable& table, int32_t rows, cudaStream_t stream);

/// RMSNorm of every q head and k head over head_dim, then RoPE. `op` is what report_bad names for values that
/// are not finite.
struct HeadNorm {
  const float* q_norm;  // [head_dim]
  const float* k_norm;  // [head_dim]
  const float* rope;    // [rows][rope_stride]: a RopeTable
  int64_t rope_stride;
  float eps;
  int32_t op;
};
/// Keys and values of each row into the pages of its sequence. `op` is what report_bad names for values that
/// are not finite as float16, which q8 pages are widened to.
struct HeadStore {
  KvPages pages;
  int32_t op;
};
/// Q | K | V of each row; head_dim is a multiple of 16 up to 256, `stride` (floats) and the pointer of whole
/// 8 bytes.
struct HeadRows {
  float* qkv;
  int64_t stride;
  QkvLayout layout;
};

void launch_norm(const StepView& step, const HeadRows& heads, const HeadNorm& norm, int32_t rows,
                 cudaStream_t stream);
void launch_store(const StepView& step, const HeadRows& heads, const HeadStore& store, int32_t rows,
                  cudaStream_t stream);
/// Both, in one launch. Normed keys go into the pages alone: in `qkv` they stay what they were.
void launch_norm_store(const StepView& step, const HeadRows& heads, const HeadNorm& norm,
                       const HeadStore& store, int32_t rows, cudaStream_t stream);

}  // namespace niwaki::cuda
