#pragma once
#include <cstdint>

#include "cuda/runtime.h"

namespace niwaki::cuda {

/// What one block of paged attention works on: some rows of one sequence, one KV head, and a range of its
/// context.
struct AttentionItem;

/// A step as kernels see it. The pointers are into device memory and the same for every step of a plan, so
/// that a captured graph serves them all; what they point to is uploaded before each step. A launch is for a
/// bucket of rows: those from `counts->rows` on are of no sequence, and whatever they compute must change
/// nothing else.
struct StepView {
  struct Counts {
    int32_t rows, outputs, sequences, attention_items;
  };
  const Counts* counts;
  const int32_t* tokens;          // [rows]
  const int32_t* positions;       // [rows]
  const int32_t* sequences;       // [rows]
  const int32_t* table_begins;    // [sequences]: where its block table begins
  const int32_t* tables;          // block ids, of all sequences
  const int32_t* outputs;         // [outputs]: rows
  const AttentionItem* items;     // [attention_items]
  unsigned long long* first_bad;  // lowest operation << 32 | row with a value that is not finite, else ~0
};

/// Where an operation and a row (or output row) are named in StepView::first_bad.
__device__ inline void report_bad(const StepView& step, int32_t op, int32_t row) {
  atomicMin(step.first_bad, static_cast<unsigned long long>(op) << 32 | static_cast<unsigned long long>(row));
}

}  // namespace niwaki::cuda
