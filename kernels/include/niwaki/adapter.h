#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "niwaki/data_type.h"

namespace niwaki {

/// How the matrices of adapters lie in a slot. kI8: integers, and a float scale for each rank (of A's row and
/// of B's column, multiplied).
enum class AdapterType : int32_t { kF16, kI8 };

struct AdapterSlotsSpec {
  int32_t slots;
  int32_t max_rank;
  AdapterType type;
  std::vector<std::string> targets;  // names of tensors that the plan multiplies by: "blk.3.attn_q.weight"
};

/// A matrix of an adapter as it lies in a file, row by row: kF32, kF16 or kBF16, of any alignment.
struct AdapterMatrix {
  DataType type;
  std::span<const uint8_t> data;
};

/// What an adapter adds to one tensor W: y = W x + scale B A x (LoRA: Hu et al., 2021). With row scales f,
/// one for each row of W: y = f (W x + scale B A x), which is DoRA (Liu et al., 2024) for f = m / ||W + scale
/// B A||, by rows.
struct AdapterTarget {
  std::string tensor;
  int32_t rank;
  float scale;
  AdapterMatrix a;               // [rank, columns of W]
  AdapterMatrix b;               // [rows of W, rank]
  std::vector<float> row_scale;  // [rows of W], or empty
};

/// Memory of a device for the adapters that steps of one plan may use. A slot holds one adapter or none.
class AdapterSlots {
 public:
  struct Shape {
    int64_t rows, columns;
  };
  virtual ~AdapterSlots() = default;
  virtual const AdapterSlotsSpec& spec() const = 0;
  /// Of each target, in the order of the specification.
  virtual const std::vector<Shape>& shapes() const = 0;
  /// Bytes of all slots: taken from the system at once, and used again for whatever is loaded later.
  virtual size_t bytes() const = 0;
};

/// Adapters in the mix of one sequence at most.
constexpr int32_t kMaxMix = 16;

}  // namespace niwaki
