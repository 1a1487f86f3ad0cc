#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/page_memory.h"
#include "cpu/thread_pool.h"
#include "niwaki/training.h"

namespace niwaki {

/// The factors of all adapters of a plan, with their gradients and moments. Both lie so that products read
/// them without a copy, the rank padded with zeros to 16; padding has no gradient and stays 0:
///
///   A transposed [inputs][padded rank]     B [outputs][padded rank]
class LoraParameters {
 public:
  struct Adapter {
    int64_t rank, padded_rank, inputs, outputs;
    size_t a, b;  // where they begin, in floats
  };

  /// Returns the index of the adapter. Before `reserve`.
  size_t add(int64_t rank, int64_t inputs, int64_t outputs);
  /// Throws kOutOfMemory.
  void reserve();

  const std::vector<Adapter>& adapters() const { return adapters_; }
  float* values() const { return array(TrainingState::kParameters); }
  float* gradients() const { return array(TrainingState::kGradients); }
  size_t bytes() const { return memory_.size(); }

  void clear_gradients();
  /// See TrainingPlan.
  double update(ThreadPool& pool, const AdamW& options);
  std::vector<float> read(TrainingState state) const;
  void write(TrainingState state, std::span<const float> values);

 private:
  float* array(TrainingState state) const {
    return reinterpret_cast<float*>(memory_.data()) + static_cast<size_t>(state) * floats_;
  }
  double gradient_norm(ThreadPool& pool) const;

  std::vector<Adapter> adapters_;
  size_t floats_ = 0;  // of one array
  size_t count_ = 0;   // of parameters
  PageMemory memory_;  // four arrays, in the order of TrainingState
};

}  // namespace niwaki
