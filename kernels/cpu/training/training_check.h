#pragma once
#include <vector>

#include "niwaki/training.h"

namespace niwaki {

/// The buffers that an operation reads and the one that it writes.
struct TrainingPorts {
  std::vector<BufferId> in;
  BufferId out;
};
TrainingPorts ports_of(const TrainingOp& op);

/// Everything about limits, buffers and widths that does not fit. Throws kInvalidArgument with the label of
/// the operation.
void check_training(const TrainingSpec& spec);

/// Throws kInvalidArgument for rows, tokens, outputs or weights out of range.
void check_training_batch(const TrainingSpec& spec, const TrainingBatch& batch);

}  // namespace niwaki
