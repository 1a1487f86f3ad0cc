#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/row_kernels.h"
#include "niwaki/step.h"

namespace niwaki {

/// Chooses tokens from logits. One object per thread: it holds that thread's scratch memory.
class Sampler {
 public:
  /// `position` is the one that the chosen token will stand at: the draw depends on it and the seed alone.
  /// `what` names the sample in errors: kNonFinite for logits that are NaN or infinite, kInvalidArgument if
  /// the biases ban every token.
  SampleResult sample(const RowKernels& kernels, const float* logits, int64_t vocabulary,
                      const SampleSpec& spec, int64_t position, const std::string& what);

 private:
  void adjust(const SampleSpec& spec, const float* logits, int64_t vocabulary);
  /// The `count` most likely tokens into candidates_, descending, ties to the lower id; never one of
  /// -infinity.
  void select_top(const RowKernels& kernels, const float* logits, int64_t vocabulary, int64_t count);
  int32_t draw(const RowKernels& kernels, const float* logits, int64_t vocabulary, float max,
               const SampleSpec& spec, int64_t position);
  int32_t draw_from_candidates(const RowKernels& kernels, const float* logits, int64_t vocabulary, float max,
                               const SampleSpec& spec, double uniform);

  std::vector<float> adjusted_;
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<int32_t> candidates_;
  std::vector<int32_t> history_;
};

/// A uniform number of [0, 1) with 53 bits that depends on its arguments alone.
double uniform_draw(uint64_t seed, uint64_t position);

}  // namespace niwaki
