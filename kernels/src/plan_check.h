#pragma once
#include <cstdint>

#include "niwaki/plan.h"
#include "niwaki/step.h"

namespace niwaki {

/// Checks that every operation reads what is there and fits, and that nothing is read before it is written.
/// Throws kInvalidArgument naming the operation, what was got and what is allowed.
void check_plan(const PlanSpec& spec);

/// Blocks of the smallest KV cache of a plan; 0 if it has none.
int32_t kv_blocks(const PlanSpec& spec);

/// Checks a step against its plan, so that running it touches nothing out of range. Throws kInvalidArgument.
void check_step(const PlanSpec& spec, const Step& step);

}  // namespace niwaki
