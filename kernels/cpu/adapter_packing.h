#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpu/adapter_kernels.h"
#include "cpu/thread_pool.h"
#include "niwaki/adapter.h"

namespace niwaki {

/// What an adapter does to one target, packed as adapter_kernels.h says.
struct AdapterPart {
  int32_t rank = 0;  // 0: nothing
  float scale = 0;
  uint8_t* a = nullptr;
  uint8_t* b = nullptr;
  float* rank_scale = nullptr;
  float* row_scale = nullptr;
  bool scales_rows = false;  // DoRA
};

/// The tensors that the adapters of some slots may change, and where in a slot lies what changes them. It is
/// the same on every device:
///
///   slot:    | target | target | ... |
///   target:  | A | B | a scale for each rank | f for each row of the tensor |   of the highest rank
class AdapterTargets {
 public:
  using Shape = AdapterSlots::Shape;
  /// Bytes from the beginning of a slot, multiples of 64.
  struct Place {
    size_t a, b, rank_scale, row_scale;
  };

  /// Checks what needs no plan. Throws kInvalidArgument.
  explicit AdapterTargets(AdapterSlotsSpec spec);

  /// Which target a tensor is, -1 if it is none.
  int32_t find(const std::string& tensor) const;

  /// Lays a slot out, once the shapes of all targets are known. Throws kOutOfMemory if so many slots are more
  /// than can be addressed.
  void lay_out(std::vector<Shape> shapes);

  const AdapterSlotsSpec& spec() const { return spec_; }
  const std::vector<Shape>& shapes() const { return shapes_; }
  const std::vector<Place>& places() const { return places_; }
  size_t slot_bytes() const { return slot_bytes_; }
  /// The highest rank, padded.
  int64_t padded_rank() const { return (spec_.max_rank + kAdapterRanks - 1) / kAdapterRanks * kAdapterRanks; }
  /// Bytes of a value of A or B.
  size_t value_bytes() const { return spec_.type == AdapterType::kF16 ? 2 : 1; }

  /// Throws kInvalidArgument, kNonFinite naming the tensor. Any thread.
  void check(int32_t slot, const std::vector<AdapterTarget>& adapter) const;
  void check(const AdapterTarget& target) const;

  /// As `find`; throws kInvalidArgument if it is none.
  int32_t index_of(const std::string& tensor) const;
  const Shape& shape_of(const AdapterTarget& target) const {
    return shapes_[static_cast<size_t>(index_of(target.tensor))];
  }

 private:
  const AdapterSlotsSpec spec_;
  std::unordered_map<std::string, int32_t> index_;
  std::vector<Shape> shapes_;
  std::vector<Place> places_;
  size_t slot_bytes_ = 0;
};

/// Of one target: what its integers are multiplied by, and what they mean.
struct AdapterScales {
  std::vector<float> a_inverse, b_inverse;  // of each rank
  std::vector<float> rank;
};

// From inside a job, with what `check` has passed:

/// Reads an adapter through before anything is changed. Throws kNonFinite naming the tensor if a value is
/// NaN, infinite or, for kF16, beyond float16.
std::vector<AdapterScales> examine_adapter(const AdapterKernels& kernels, ThreadPool& pool,
                                           const AdapterTargets& targets,
                                           std::span<const AdapterTarget> adapter);

/// Fills the parts that an adapter's targets go to.
void pack_adapter(const AdapterKernels& kernels, ThreadPool& pool, const AdapterTargets& targets,
                  std::span<const AdapterTarget> adapter, std::span<const AdapterScales> scales,
                  std::span<AdapterPart* const> parts);

/// || W + scale B A || of every row; `copy_row` gives a row of W as floats, on any thread. Throws kNonFinite
/// naming the tensor.
std::vector<float> adapter_row_norms(const AdapterKernels& kernels, ThreadPool& pool,
                                     const AdapterTargets& targets, const AdapterTarget& target,
                                     const std::function<void(int64_t row, float* weights)>& copy_row);

}  // namespace niwaki
