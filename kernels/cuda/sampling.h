#pragma once
// The next token of each output row, chosen on the GPU: cpu/sampling.h over device memory.
//
//   pack()  ->  [ table | samples | histories, biases ]  -> upload by the caller -> launch() -> unpack()
//
// A sample's result depends on its specification, logits and position alone, not on what else is in the step.
// Greedy tokens, top-k sets and the lists of the most likely tokens are those of the CPU, ties included.
// Weights are the CPU's, too, to the bit; they are summed in double in a fixed order, but not in the CPU's.
// So a draw, or the end of a nucleus, may differ where it falls within the rounding of such a sum (some 1e-15
// of it) of the boundary between two tokens. Log-probabilities may differ in the last place of a float. Not
// to be compiled with fast math.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "cuda/step_view.h"
#include "niwaki/step.h"

namespace niwaki::cuda {

struct SampleTable;
struct SamplingScratch;

/// Device memory for the samples of one step at a time.
class CudaSampler {
 public:
  /// Throws kUnsupported for more than kMaxVocabulary tokens, kOutOfMemory.
  CudaSampler(int32_t max_samples, int32_t vocabulary);
  ~CudaSampler();

  static constexpr int32_t kMaxVocabulary = 1 << 20;

  /// Which kernels a step needs: one kernel if all samples are greedy, of logits as they are and without
  /// log-probabilities, else three.
  enum class Kind : int32_t { kGreedy, kAny };

  static Kind kind_of(const Step& step);

  /// Room that pack() needs for a step, and its samples on the GPU, in bytes.
  static size_t packed_bytes(const Step& step);
  /// Room for the results of a step's samples, in bytes.
  static size_t result_bytes(const Step& step);
  /// Writes the samples of a checked step to `staging`, for the caller to copy to `device` before the launch;
  /// that address, a multiple of 16, is in what is written, and `results` is, too: pinned memory, 16-byte
  /// aligned, that the launch writes. Throws kUnsupported for more than max_samples.
  void pack(const Step& step, std::byte* staging, const std::byte* device, std::byte* results) const;

  /// Chooses the tokens of all samples of the table, of which there are at most `bucket`, so that a captured
  /// graph serves every step of so many. `packed`: what pack() wrote, in device memory. logits: [outputs,
  /// row_stride >= vocabulary]. `next_tokens`, unless null, gets the token of sample i at i (0 where sampling
  /// fails). A draw is for the position after its row's in `step`. The results begin with
  /// StepView::first_bad, as the kernels before left it.
  void launch(cudaStream_t stream, Kind kind, int32_t bucket, const StepView& step, const std::byte* packed,
              const float* logits, int64_t row_stride, int32_t* next_tokens) const;

  /// `results`: what the launch wrote. Throws what the CPU's sampler throws for the first sample that failed,
  /// which describe(i) names.
  static std::vector<SampleResult> unpack(const Step& step, const std::byte* results,
                                          const std::function<std::string(size_t sample)>& describe);

  /// Device memory in bytes.
  size_t bytes() const { return scratch_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { cudaFree(memory); }
  };
  using DeviceMemory = std::unique_ptr<std::byte, Free>;
  static DeviceMemory allocate(size_t bytes);
  SamplingScratch scratch() const;

  int32_t max_samples_, vocabulary_;
  size_t scratch_bytes_ = 0;
  DeviceMemory scratch_;
};

}  // namespace niwaki::cuda
