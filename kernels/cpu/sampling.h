#pragma once
#include <cstdint>
#include <string>
#include <utility>
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
  /// Biases and penalties, of the few logits that they touch.
  void adjust(const SampleSpec& spec, const float* logits, int64_t vocabulary);
  bool is_adjusted(int64_t token) const;
  /// The token's value in adjusted_, which is its logit at first.
  float& adjusted(int32_t token, const float* logits);
  float adjusted_value(int64_t token, const float* logits) const;
  /// The first of the largest among the adjusted values and `best`, which is that of all others.
  int64_t best_of_adjusted(int64_t best, const float* logits) const;
  /// The `count` most likely tokens into candidates_, descending, ties to the lower id; never one of
  /// -infinity.
  void select_top(const RowKernels& kernels, const float* logits, int64_t vocabulary, int64_t count);
  int32_t draw(const RowKernels& kernels, const float* logits, int64_t vocabulary, float max,
               const SampleSpec& spec, int64_t position);
  int32_t draw_from_candidates(const RowKernels& kernels, const float* logits, int64_t vocabulary, float max,
                               const SampleSpec& spec, double uniform);

  std::vector<std::pair<int32_t, float>> adjusted_;
  std::vector<uint32_t> places_;  // of tokens in adjusted_, where that has the token; else anything
  std::vector<float> all_;        // logits, adjusted
  std::vector<float> weights_;
  std::vector<double> sums_;
  std::vector<int32_t> candidates_;
  std::vector<int32_t> history_;
};

/// A uniform number of [0, 1) with 53 bits that depends on its arguments alone.
double uniform_draw(uint64_t seed, uint64_t position);

}  // namespace niwaki
