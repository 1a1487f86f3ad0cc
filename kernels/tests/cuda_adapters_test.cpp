// Adapters on the GPU (or its emulator): what the kernels of one linear operation compute, and what cannot be
// loaded.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <future>
#include <numeric>

#include "adapters.h"
#include "check.h"
#include "cpu/tier.h"
#include "cuda/adapters.h"
#include "errors.h"

using namespace niwaki;
using namespace niwaki::test;
using niwaki::cuda::CudaAdapterSlots;
using niwaki::cuda::LinearTensor;

namespace {

/// Memory of the device with a copy of some values.
template <class T>
class DeviceCopy {
 public:
  explicit DeviceCopy(const std::vector<T>& values) : count_(values.size()) {
    void* memory = nullptr;
    cuda::check(cudaMalloc(&memory, std::max<size_t>(1, bytes())), "taking memory");
    memory_ = static_cast<T*>(memory);
    cuda::check(cudaMemcpy(memory_, values.data(), bytes(), cudaMemcpyHostToDevice), "copying");
  }
  ~DeviceCopy() { cudaFree(memory_); }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  T* get() const { return memory_; }
  std::vector<T> values() const {
    std::vector<T> values(count_);
    cuda::check(cudaMemcpy(values.data(), memory_, bytes(), cudaMemcpyDeviceToHost), "copying");
    return values;
  }

 private:
  size_t bytes() const { return count_ * sizeof(T); }
  size_t count_;
  T* memory_;
};

/// Runs f as a job of a pool.
template <class F>
void in_job(F&& f) {
  ThreadPool pool(2);
  std::promise<void> done;
  pool.submit([&] {
    try {
      f(pool);
      done.set_value();
    } catch (...) {
      done.set_exception(std::current_exception());
    }
  });
  done.get_future().get();
}

void load(CudaAdapterSlots& slots, int32_t slot, const std::vector<AdapterTarget>& adapter) {
  slots.check(slot, adapter);
  in_job([&](ThreadPool& pool) { slots.load(pool, slot, adapter, nullptr); });
}

struct Sequence {
  int32_t rows;
  std::vector<AdapterUse> mix;
};

Step step_of(const std::vector<Sequence>& sequences) {
  Step step;
  for (const Sequence& s : sequences) {
    step.sequences.push_back({s.rows, s.rows, {}, s.mix});
    step.tokens.resize(step.tokens.size() + static_cast<size_t>(s.rows));
  }
  return step;
}

/// y = W x for tensors of so many rows, stacked, of which some are targets. Rows of x and y are wider than
/// they need be.
struct Linear {
  std::vector<int64_t> part_rows;
  int64_t columns;
  bool per_output = false;
  static constexpr int kRows = 130;  // of x, and of y before adapters
  std::vector<float> x, y;
  int64_t x_stride, y_stride;

  Linear(std::vector<int64_t> rows, int64_t columns_, int64_t y_padding = 4)
      : part_rows(std::move(rows)), columns(columns_), x_stride((columns + 7) / 4 * 4) {
    y_stride = std::accumulate(part_rows.begin(), part_rows.end(), y_padding);
    x = Random(1).normals(static_cast<size_t>(kRows * x_stride));
    y = Random(2).normals(static_cast<size_t>(kRows * y_stride), 2);
  }

  std::vector<LinearTensor> tensors() const {
    std::vector<LinearTensor> tensors = {{"elsewhere", 1, 0, 48, 32, false}};
    int64_t first = 0;
    for (size_t i = 0; i < part_rows.size(); ++i) {
      tensors.push_back({"w" + std::to_string(i), 3, first, part_rows[i], columns, per_output});
      first += part_rows[i];
    }
    return tensors;
  }
  std::shared_ptr<CudaAdapterSlots> make_slots(AdapterSlotsSpec spec) const {
    return std::make_shared<CudaAdapterSlots>(kPortableAdapterKernels, tensors(), kRows, kRows,
                                              std::move(spec));
  }

  /// What becomes of `out`, where row i of the step has row from[i] of x and y. Not accumulating, `out` is y.
  std::vector<float> run(const CudaAdapterSlots& slots, const Step& step, int32_t bucket,
                         const std::vector<int>& from, const std::vector<float>* out = nullptr) const {
    std::vector<float> rows_x(static_cast<size_t>(bucket * x_stride), NAN);
    std::vector<float> rows_y(static_cast<size_t>(bucket * y_stride), 7);
    for (size_t i = 0; i < from.size(); ++i) {
      std::copy_n(x.begin() + from[i] * x_stride, columns,
                  rows_x.begin() + static_cast<int64_t>(i) * x_stride);
      std::copy_n(y.begin() + from[i] * y_stride, y_stride,
                  rows_y.begin() + static_cast<int64_t>(i) * y_stride);
    }
    const std::vector<uint8_t> packed = slots.pack_step(step);
    CHECK(!packed.empty() && packed.size() <= slots.max_step_bytes());
    const DeviceCopy device_step(packed);
    const DeviceCopy device_x(rows_x), device_y(rows_y), device_out(out != nullptr ? *out : rows_y);
    slots.project(3, bucket, device_step.get(), device_x.get(), x_stride, nullptr);
    float* to = out != nullptr ? device_out.get() : device_y.get();
    slots.add(3, bucket, device_step.get(), device_y.get(), y_stride, to, y_stride, out != nullptr, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "adapters");
    if (out != nullptr) CHECK(device_y.values() == rows_y);
    return out != nullptr ? device_out.values() : device_y.values();
  }

  /// As `run`, of all rows of the step, row i from row i.
  std::vector<float> run(const CudaAdapterSlots& slots, const Step& step, int32_t bucket) const {
    std::vector<int> from(step.tokens.size());
    std::iota(from.begin(), from.end(), 0);
    return run(slots, step, bucket, from);
  }

  /// A matrix of an adapter as a slot holds it, in double: [rows][columns] of `at`, integers by rows or by
  /// columns.
  static std::vector<double> rounded(AdapterType type, int64_t rows, int64_t columns, bool by_columns,
                                     const std::function<float(int64_t, int64_t)>& at) {
    std::vector<double> values;
    std::vector<float> largest(static_cast<size_t>(by_columns ? columns : rows));
    const auto scale_of = [&](int64_t r, int64_t c) -> float& {
      return largest[static_cast<size_t>(by_columns ? c : r)];
    };
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) scale_of(r, c) = std::max(scale_of(r, c), std::fabs(at(r, c)));
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const double top = static_cast<double>(scale_of(r, c));
        if (type == AdapterType::kF16) {
          values.push_back(static_cast<double>(half_to_float(float_to_half(at(r, c)))));
        } else {
          values.push_back(std::nearbyint(at(r, c) * (127 / scale_of(r, c))) * top / 127);
        }
      }
    }
    return values;
  }

  /// What a mix makes of a row of y, in double.
  std::vector<double> reference(AdapterType type, int row,
                                const std::vector<std::pair<const Pair*, double>>& mix) const {
    std::vector<double> result;
    int64_t first = 0;
    for (size_t part = 0; part < part_rows.size(); first += part_rows[part++]) {
      std::vector<double> sums(y.begin() + row * y_stride + first,
                               y.begin() + row * y_stride + first + part_rows[part]);
      const std::vector<double> bases = sums;
      for (const auto& [pair, weight] : mix) {
        if (pair->target.tensor != "w" + std::to_string(part)) continue;
        const int64_t rank = pair->target.rank;
        const auto a =
            rounded(type, rank, columns, false, [&](int64_t k, int64_t c) { return pair->a_at(k, c); });
        const auto b = rounded(type, part_rows[part], rank, true,
                               [&](int64_t r, int64_t k) { return pair->b_at(r, k); });
        std::vector<double> t(static_cast<size_t>(rank));
        for (int64_t i = 0; i < rank * columns; ++i)
          t[static_cast<size_t>(i / columns)] +=
              a[static_cast<size_t>(i)] *
              static_cast<double>(x[static_cast<size_t>(row * x_stride + i % columns)]);
        for (size_t r = 0; r < sums.size(); ++r) {
          double change = 0;
          for (size_t k = 0; k < t.size(); ++k) change += b[r * t.size() + k] * t[k];
          const double f =
              pair->target.row_scale.empty() ? 1 : static_cast<double>(pair->target.row_scale[r]);
          sums[r] += weight * ((f - 1) * bases[r] + f * static_cast<double>(pair->target.scale) * change);
        }
      }
      result.insert(result.end(), sums.begin(), sums.end());
    }
    return result;
  }
};

double relative_error(std::span<const float> y, const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(y[i]) - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

std::vector<AdapterTarget> targets_of(const std::vector<Pair>& adapter) {
  std::vector<AdapterTarget> targets;
  for (const Pair& pair : adapter) targets.push_back(pair.target);
  return targets;
}

/// Four adapters of a Linear of at least two tensors: of all tensors or one, of many ranks, two with row
/// scales.
std::vector<std::vector<Pair>> four_adapters(const Linear& linear, DataType from) {
  const auto pair = [&](size_t part, int rank, uint64_t seed, bool dora = false) {
    return Pair("w" + std::to_string(part), linear.part_rows[part], linear.columns, rank, from, seed, dora);
  };
  std::vector<std::vector<Pair>> adapters(4);
  for (size_t part = 0; part < linear.part_rows.size(); ++part)
    adapters[0].push_back(pair(part, 1 + 19 * static_cast<int>(part % 2), 10 + part));
  adapters[1] = {pair(1, 16, 40, true)};
  adapters[2] = {pair(0, 4, 60), pair(1, 3, 50, true)};
  adapters[3] = {pair(0, 17, 70)};
  return adapters;
}

std::vector<std::string> names_of(const Linear& linear) {
  std::vector<std::string> names;
  for (size_t i = 0; i < linear.part_rows.size(); ++i) names.push_back("w" + std::to_string(i));
  return names;
}

/// Twelve sequences: all adapters, alone and mixed, a mix that comes twice, rows without any.
std::vector<Sequence> twelve_sequences() {
  return {
      {1, {{1, 1}}}, {2, {}},          {1, {{2, 1}}},          {3, {{3, -0.5f}}},
      {1, {{4, 1}}}, {9, {{1, 0.5f}}}, {1, {{1, 1}}},          {2, {{2, 0.5f}, {3, 0.25f}, {1, 2}, {4, 1}}},
      {1, {}},       {1, {{2, 1}}},    {1, {{3, 1}, {3, -1}}}, {1, {{4, 0}}}};
}

constexpr int kTwelveRows = 24;

}  // namespace

TEST(agrees_with_double) {
  for (const int64_t columns : {16, 75, 512, 1300}) {
    const Linear linear({70, 33, 300}, columns);
    for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
      const DataType from = columns == 75    ? DataType::kF32
                            : columns == 512 ? DataType::kBF16
                                             : DataType::kF16;
      const auto adapters = four_adapters(linear, from);
      const auto slots = linear.make_slots({5, 20, type, names_of(linear)});
      for (size_t i = 0; i < adapters.size(); ++i)
        load(*slots, static_cast<int32_t>(i + 1), targets_of(adapters[i]));
      const auto sequences = twelve_sequences();
      for (const int bucket : {32, 128}) {
        const auto y = linear.run(*slots, step_of(sequences), bucket);
        int row = 0;
        for (const Sequence& s : sequences) {
          std::vector<std::pair<const Pair*, double>> mix;
          for (const AdapterUse& use : s.mix) {
            for (const Pair& pair : adapters[static_cast<size_t>(use.slot - 1)])
              mix.emplace_back(&pair, use.weight);
          }
          for (int i = 0; i < s.rows; ++i, ++row) {
            const auto expected = linear.reference(type, row, mix);
            const auto found =
                std::span(y).subspan(static_cast<size_t>(row * linear.y_stride), expected.size());
            CHECK(relative_error(found, expected) < 1e-6);
            if (s.mix.empty()) {
              CHECK(std::equal(found.begin(), found.end(), linear.y.begin() + row * linear.y_stride));
            } else {
              CHECK(relative_error(found, linear.reference(type, row, {})) > 1e-5 || s.mix[0].weight == 0 ||
                    s.mix.size() == 2);
            }
          }
        }
        // Neither what follows a row nor rows beyond the step's.
        for (size_t i = 0; i < y.size(); ++i) {
          const bool inside = static_cast<int64_t>(i) / linear.y_stride < row;
          if (inside && static_cast<int64_t>(i) % linear.y_stride < linear.y_stride - 4) continue;
          CHECK(y[i] == (inside ? linear.y[i] : 7.0f));
        }
      }
    }
  }
}

TEST(agrees_with_double_where_pairs_are_aligned) {
  const Linear linear({64, 128}, 256);
  const auto adapters = four_adapters(linear, DataType::kF16);
  const auto slots = linear.make_slots({1, 20, AdapterType::kF16, names_of(linear)});
  load(*slots, 0, targets_of(adapters[0]));
  for (const int bucket : {1, 8}) {
    const auto y = linear.run(*slots, step_of({{1, {{0, 1}}}}), bucket);
    const auto expected =
        linear.reference(AdapterType::kF16, 0, {{&adapters[0][0], 1.0}, {&adapters[0][1], 1.0}});
    CHECK(relative_error(y, expected) < 1e-6);
  }
}

TEST(a_row_has_the_same_bits_alone_and_in_any_batch) {
  // Wide enough for several chunks, the last of them not whole.
  const Linear linear({70, 200}, 1200);
  for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
    const auto adapters = four_adapters(linear, DataType::kF16);
    const auto slots = linear.make_slots({5, 24, type, names_of(linear)});
    for (size_t i = 0; i < adapters.size(); ++i)
      load(*slots, static_cast<int32_t>(i + 1), targets_of(adapters[i]));
    const auto sequences = twelve_sequences();
    const auto together = linear.run(*slots, step_of(sequences), 32);
    CHECK(together.size() == static_cast<size_t>(32 * linear.y_stride));
    const auto same = [&](const std::vector<float>& rows, int row, int expected) {
      return std::equal(rows.begin() + row * linear.y_stride, rows.begin() + (row + 1) * linear.y_stride,
                        together.begin() + expected * linear.y_stride);
    };
    int row = 0;
    for (const Sequence& s : sequences) {
      for (int i = 0; i < s.rows; ++i, ++row) {
        if (s.mix.empty()) continue;
        for (const int bucket : {1, 4, 65})
          CHECK(same(linear.run(*slots, step_of({{1, s.mix}}), bucket, {row}), 0, row));
      }
      if (s.rows > 1 && !s.mix.empty()) {
        std::vector<int> from(static_cast<size_t>(s.rows));
        std::iota(from.begin(), from.end(), row - s.rows);
        const auto alone = linear.run(*slots, step_of({s}), s.rows, from);
        for (int i = 0; i < s.rows; ++i) CHECK(same(alone, i, from[static_cast<size_t>(i)]));
      }
    }
    // In a long step, behind and between others of the same adapter.
    std::vector<Sequence> many = {{40, {{1, 0.5f}}}, {33, {{2, 1}}}};
    std::vector<int> from(73, 100);
    many.insert(many.end(), sequences.begin(), sequences.end());
    for (int i = 0; i < kTwelveRows; ++i) from.push_back(i);
    const auto long_step = linear.run(*slots, step_of(many), 128, from);
    for (int i = 0; i < kTwelveRows; ++i) CHECK(same(long_step, 73 + i, i));
  }
}

TEST(accumulates_in_all_rows_of_the_step) {
  Linear linear({70, 33}, 300);
  // Of the second tensor alone: the first is added, too.
  const auto adapters = four_adapters(linear, DataType::kF16);
  const auto slots = linear.make_slots({5, 20, AdapterType::kF16, {"w1"}});
  load(*slots, 1, {adapters[0][1].target});
  load(*slots, 2, targets_of(adapters[1]));
  for (const int bucket : {16, 100}) {
    const Step step = step_of({{1, {{1, 1}}}, {2, {}}, {9, {{2, 0.5f}, {1, 1}}}});
    const auto z = linear.run(*slots, step, bucket);
    const auto old = Random(9).normals(static_cast<size_t>(bucket * linear.y_stride));
    std::vector<int> from(12);
    std::iota(from.begin(), from.end(), 0);
    const auto sums = linear.run(*slots, step, bucket, from, &old);
    for (size_t i = 0; i < sums.size(); ++i) {
      const bool inside = i < static_cast<size_t>(12 * linear.y_stride) &&
                          static_cast<int64_t>(i) % linear.y_stride < linear.y_stride - 4;
      CHECK(sums[i] == (inside ? old[i] + z[i] : old[i]));
    }
  }
  // Two rows at most have kernels of their own.
  const Step step = step_of({{1, {}}, {1, {{2, 1}}}});
  const std::vector<float> old(static_cast<size_t>(2 * linear.y_stride), 0.5f);
  const auto z = linear.run(*slots, step, 2), sums = linear.run(*slots, step, 2, {0, 1}, &old);
  for (size_t i = 0; i < sums.size(); ++i)
    CHECK(sums[i] == (static_cast<int64_t>(i) % linear.y_stride < linear.y_stride - 4 ? 0.5f + z[i] : 0.5f));
}

TEST(output_rows_have_the_adapters_of_their_sequences) {
  Linear linear({70, 33}, 96);
  const auto adapters = four_adapters(linear, DataType::kF16);
  const auto run = [&](bool per_output, const Step& step, const std::vector<int>& from) {
    linear.per_output = per_output;
    const auto slots = linear.make_slots({5, 20, AdapterType::kF16, names_of(linear)});
    for (size_t i = 0; i < adapters.size(); ++i)
      load(*slots, static_cast<int32_t>(i + 1), targets_of(adapters[i]));
    return linear.run(*slots, step, 4, from);
  };
  Step step = step_of({{3, {{1, 1}}}, {2, {}}, {1, {{4, 2}}}});
  step.outputs = {2, 3, 5};
  const auto expected = run(false, step_of({{1, {{1, 1}}}, {1, {}}, {1, {{4, 2}}}}), {10, 11, 12});
  CHECK(run(true, step, {10, 11, 12}) == expected);
}

TEST(a_slot_is_used_again) {
  const Linear linear({70, 33}, 64);
  const auto adapters = four_adapters(linear, DataType::kF16);
  const auto slots = linear.make_slots({2, 20, AdapterType::kF16, names_of(linear)});
  const auto y = [&](int32_t slot) { return linear.run(*slots, step_of({{1, {{slot, 1}}}}), 1); };
  // A high rank of both tensors, then a low one with row scales, then one of one tensor.
  load(*slots, 0, targets_of(adapters[0]));
  load(*slots, 0, targets_of(adapters[2]));
  load(*slots, 0, targets_of(adapters[3]));
  load(*slots, 1, targets_of(adapters[3]));
  CHECK(y(0) == y(1));
  load(*slots, 0, {});
  CHECK(contains(message_of(ErrorCode::kInvalidArgument,
                            [&] {
                              slots->pack_step(step_of({{1, {{0, 1}}}}));
                            }),
                 "sequence 0 uses adapter slot 0, which is empty"));
  CHECK(slots->pack_step(step_of({{3, {}}})).empty());
  CHECK(slots->touches(3) && !slots->touches(1) && !slots->touches(2) && !slots->touches(4));
  CHECK(slots->shapes()[1].rows == 33 && slots->shapes()[1].columns == 64 &&
        slots->bytes() > 2 * 103 * 20 * 2);
}

TEST(what_cannot_be_loaded_leaves_the_slot_as_it_was) {
  const Linear linear({70, 33}, 64);
  for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
    const auto slots = linear.make_slots({2, 8, type, {"w0", "w1"}});
    const Pair good("w0", 70, 64, 8, DataType::kF32, 1);
    load(*slots, 1, {good.target});
    const auto y = [&] { return linear.run(*slots, step_of({{1, {{1, 1}}}}), 1); };
    const auto before = y();
    for (const bool in_b : {false, true}) {
      for (const float bad : {NAN, INFINITY, -INFINITY, -70000.0f}) {
        const Pair other("w1", 33, 64, 8, DataType::kF32, 4);
        Pair pair("w0", 70, 64, 8, DataType::kF32, 3);
        std::vector<uint8_t>& bytes = (in_b ? *pair.b : *pair.a).bytes;
        std::memcpy(bytes.data() + bytes.size() - 4, &bad, 4);
        if (std::isfinite(bad) && type == AdapterType::kI8) continue;
        const std::string message = message_of(ErrorCode::kNonFinite, [&] {
          load(*slots, 1, {other.target, pair.target});
        });
        CHECK(contains(message, std::string("w0: ") + (in_b ? "B" : "A") + " has a value"));
        CHECK(y() == before);
      }
    }
    AdapterTarget spoiled = good.target;
    spoiled.row_scale.assign(70, 1);
    spoiled.row_scale[69] = INFINITY;
    CHECK(
        contains(message_of(ErrorCode::kNonFinite, [&] { load(*slots, 1, {spoiled}); }), "w0: row_scale 69"));
    constexpr auto kBad = ErrorCode::kInvalidArgument;
    CHECK(contains(message_of(kBad, [&] { load(*slots, 2, {}); }), "slot must be 0 to 1, got 2"));
    CHECK(contains(message_of(kBad,
                              [&] {
                                load(*slots, 1, {good.target, good.target});
                              }),
                   "w0 is there twice"));
    CHECK(y() == before);
  }
}

TEST(slots_fit_their_plan) {
  const Linear linear({70, 33}, 64);
  const auto making = [&](AdapterSlotsSpec spec) {
    return message_of(ErrorCode::kInvalidArgument, [&] { linear.make_slots(spec); });
  };
  CHECK(contains(making({0, 8, AdapterType::kF16, {"w0"}}), "slots must be 1 to 4096, got 0"));
  CHECK(contains(making({1, 8, AdapterType::kF16, {"w0", "w0"}}), "w0 is named twice"));
  CHECK(contains(making({1, 8, AdapterType::kF16, {"w0", "w7"}}), "no tensor called w7"));
  const Linear stacked(std::vector<int64_t>(9, 16), 64);
  CHECK(contains(message_of(ErrorCode::kInvalidArgument,
                            [&] {
                              stacked.make_slots({1, 8, AdapterType::kF16, {"w0"}});
                            }),
                 "w0 is stacked with more than 7 other tensors"));
}

TEST(more_than_the_memory_is_refused) {
  // A terabyte.
  const std::vector<LinearTensor> tensors = {{"w", 0, 0, 1 << 20, 1 << 20, false}};
  const AdapterSlotsSpec spec{64, 4096, AdapterType::kF16, {"w"}};
  CHECK(contains(message_of(ErrorCode::kOutOfMemory,
                            [&] { CudaAdapterSlots slots(kPortableAdapterKernels, tensors, 1, 1, spec); }),
                 "bytes for adapter slots"));
}

TEST(row_norms_agree_with_double) {
  const Linear linear({70, 33}, 75);
  const auto slots = linear.make_slots({1, 20, AdapterType::kI8, {"w1"}});
  const Tensor w = random_tensor(DataType::kQ1_0, 33, 128, 5);
  const Pair pair("w1", 33, 75, 18, DataType::kF16, 3);
  const auto copy_row = [&](int64_t row, float* weights) {
    for (int64_t c = 0; c < 75; ++c) weights[c] = w.weight(row, c);
  };
  std::vector<float> norms;
  in_job([&](ThreadPool& pool) { norms = slots->row_norms(pool, pair.target, copy_row); });
  std::vector<double> exact;
  for (int64_t r = 0; r < 33; ++r) {
    double squares = 0;
    for (int64_t c = 0; c < 75; ++c) {
      double sum = static_cast<double>(w.weight(r, c));
      for (int k = 0; k < 18; ++k) {
        sum += static_cast<double>(pair.target.scale) * static_cast<double>(pair.b_at(r, k)) *
               static_cast<double>(pair.a_at(k, c));
      }
      squares += sum * sum;
    }
    exact.push_back(std::sqrt(squares));
  }
  CHECK(norms.size() == 33 && relative_error(norms, exact) < 1e-6);
}

TEST_MAIN()
