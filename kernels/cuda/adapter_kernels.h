#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"
#include "niwaki/adapter.h"
#include "niwaki/step.h"

namespace niwaki::cuda {

/// Rows of a step, with the same mix of adapters, that a block takes together at most.
constexpr int kItemRows = 8;
/// Tensors that the matrix of a linear operation may be stacked of.
constexpr int kMaxOpTensors = 8;

/// Some rows of a step that have the same mix of adapters, or none. Row i of them takes the entries of t from
/// first_entry + i * uses on, one for each adapter of the mix.
struct AdapterItem {
  int32_t first_row, rows;  // in the list of rows
  int32_t first_use, uses;
  int32_t first_entry;
};

/// Which rows of a step have which adapters, as it is uploaded before the step:
///
///   AdapterStep | AdapterItem ... | row numbers (int32) ... | AdapterUse ... |
struct AdapterStep {
  struct Items {
    int32_t first;
    int32_t adapted;  // items with adapters; they come first
    int32_t all;
  };
  Items of_rows, of_outputs;  // for operations over all rows, and over output rows
  int32_t rows_at, uses_at;   // bytes from here
};

/// What a slot holds for a target.
struct AdapterState {
  int32_t rank;  // 0: nothing
  float scale;
  int32_t scales_rows;  // DoRA
};

/// A linear operation of a plan and what the slots hold for it: the arguments of its kernels. A and B are
/// packed as cpu/adapter_kernels.h says, a slot is laid out as cpu/adapter_packing.h says.
struct AdapterOp {
  struct Tensor {
    size_t a, b, rank_scale, row_scale;  // bytes from the beginning of a slot
    int32_t target;                      // -1: none
    int32_t first_row;                   // of the operation's output
    int32_t rows;
  };
  Tensor tensors[kMaxOpTensors];
  int32_t tensor_count;
  int32_t columns;
  bool per_output;
  AdapterType type;
  int32_t targets;       // of a slot
  int32_t ranks;         // the highest rank, padded
  const uint8_t* slots;  // [slot][slot_bytes]
  size_t slot_bytes;
  const AdapterState* states;  // [slot][target]
  float* t;  // [entry][tensor][plane][ranks]: A x, or of few rows its sums over chunks of columns
};

/// Floats of t that steps of up to `max_rows` rows need, with the longest mixes.
size_t adapter_floats(const AdapterOp& op, int32_t max_rows);

/// t = A x of the rows that have adapters, for all tensors of the operation. x: [rows][x_stride], float32.
/// `rows` is the bucket of the step, and alone with the operation decides the shape of the grid; `step` is an
/// AdapterStep in device memory.
void launch_project(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* x, int64_t x_stride,
                    cudaStream_t stream);

/// After launch_project of the same rows: z = y + what the adapters add to y = W x, [rows][y_stride],
/// float32; see AdapterKernels::add for the order. Not accumulating, z replaces y in the rows that have
/// adapters, and `out` is y. Accumulating, out += z in all rows of the step, with adapters or without, and y
/// stays. Rows of the bucket that the step does not have are left alone.
void launch_add(const AdapterOp& op, int32_t rows, const uint8_t* step, const float* y, int64_t y_stride,
                float* out, int64_t out_stride, bool accumulate, cudaStream_t stream);

}  // namespace niwaki::cuda
