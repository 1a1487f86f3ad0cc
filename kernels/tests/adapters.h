#pragma once
// Random adapters and the slots that they are loaded into.
#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mini_model.h"
#include "niwaki/adapter.h"
#include "tensors.h"

namespace niwaki::test {

inline std::shared_ptr<AdapterSlots> make_slots(Device& device, const std::shared_ptr<Plan>& plan,
                                                AdapterSlotsSpec spec) {
  std::promise<std::shared_ptr<AdapterSlots>> made;
  device.create_adapter_slots(plan, std::move(spec), [&](std::exception_ptr failure, auto slots) {
    failure ? made.set_exception(failure) : made.set_value(std::move(slots));
  });
  return made.get_future().get();
}

inline void load(Device& device, const std::shared_ptr<AdapterSlots>& slots, int32_t slot,
                 std::vector<AdapterTarget> adapter) {
  std::promise<void> loaded;
  device.load_adapter(slots, slot, std::move(adapter), nullptr, [&](std::exception_ptr failure) {
    failure ? loaded.set_exception(failure) : loaded.set_value();
  });
  loaded.get_future().get();
}

/// An adapter's matrices for one tensor, with the memory that they lie in.
struct Pair {
  std::shared_ptr<Tensor> a, b;
  AdapterTarget target;

  Pair(const std::string& tensor, int64_t rows, int64_t columns, int rank, DataType type, uint64_t seed,
       bool dora = false)
      : a(std::make_shared<Tensor>(random_tensor(type, rank, columns, seed))),
        b(std::make_shared<Tensor>(random_tensor(type, rows, rank, seed + 1))) {
    // Not at an address that a float could lie at, as in a file.
    for (Tensor* t : {a.get(), b.get()}) t->bytes.insert(t->bytes.begin(), 0);
    target = {tensor, rank, 0.5f + static_cast<float>(seed % 7), span_of(*a), span_of(*b), {}};
    if (dora) {
      Random random(seed + 2);
      for (int64_t r = 0; r < rows; ++r) target.row_scale.push_back(1 + 0.3f * random.normal());
    }
  }
  float a_at(int64_t k, int64_t c) const { return value(*a, k, c); }
  float b_at(int64_t r, int64_t k) const { return value(*b, r, k); }

 private:
  static AdapterMatrix span_of(const Tensor& t) { return {t.type, std::span(t.bytes).subspan(1)}; }
  static float value(const Tensor& t, int64_t row, int64_t column) {
    Tensor copy{"", t.type, 1, 1, {}};
    const auto size = static_cast<size_t>(info(t.type).block_bytes);
    const auto at = t.bytes.begin() + 1 + static_cast<int64_t>(size) * (row * t.columns + column);
    copy.bytes.assign(at, at + static_cast<int64_t>(size));
    return copy.weight(0, 0);
  }
};

}  // namespace niwaki::test
