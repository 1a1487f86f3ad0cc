// What adapters cost, on linear operations of the 8B shape as a plan, without attention: adapter_bench
// [threads] [tier] [layers] [rank]. Steps with and without adapters take turns.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "cpu/float16.h"
#include "niwaki/device.h"
#include "tests/random.h"

using namespace niwaki;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

constexpr int64_t kHidden = 4096, kFfn = 12288, kQkv = 6144;
constexpr int32_t kMaxRows = 128, kVocabulary = 512;

struct Named {
  std::string name;
  int64_t rows, columns;
};

template <class T, class F>
T wait(F&& start) {
  std::promise<T> promise;
  start([&](std::exception_ptr failure, T result) {
    failure ? promise.set_exception(failure) : promise.set_value(std::move(result));
  });
  return promise.get_future().get();
}

std::shared_ptr<const Matrix> load(Device& device, const std::vector<Named>& tensors,
                                   const std::vector<uint8_t>& bytes) {
  std::vector<MatrixSource> sources;
  for (const Named& t : tensors) sources.push_back({t.name, DataType::kQ1_0, t.rows, bytes.data()});
  return wait<std::shared_ptr<const Matrix>>(
      [&](auto done) { device.load(sources, tensors[0].columns, nullptr, done); });
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string tier = argc > 2 ? argv[2] : "";
  const int layers = argc > 3 ? std::atoi(argv[3]) : 36;
  const int rank = argc > 4 ? std::atoi(argv[4]) : 16;
  const auto device = Device::open({threads, tier});
  test::Random random(1);

  // All tensors from the same random bytes: what they say does not matter, only how many there are.
  std::vector<uint8_t> bytes(static_cast<size_t>(kFfn) * row_bytes(DataType::kQ1_0, kHidden));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  for (size_t i = 0; i < bytes.size(); i += 18) bytes[i + 1] = 0x24;

  enum : BufferId { kX, kNormed, kQkvOut, kAttention, kInner, kOut, kLogits };
  PlanSpec spec{kMaxRows, kMaxRows, kVocabulary, 16, {}, {}, kLogits};
  spec.buffers = {{kHidden, false}, {kHidden, false}, {kQkv, false},      {kHidden, false},
                  {kFfn, false},    {kHidden, true},  {kVocabulary, true}};
  const auto add = [&](Op op) { spec.ops.push_back({std::move(op), "op"}); };
  const auto norm = std::make_shared<const Vector>("norm", std::vector<float>(kHidden, 1.0f));
  const auto table = load(*device, {{"table", kVocabulary, kHidden}}, bytes);
  std::vector<Named> targets;
  add(EmbedOp{table, kX});
  for (int l = 0; l < layers; ++l) {
    const std::string name = "blk." + std::to_string(l) + ".";
    const auto linear = [&](std::vector<Named> tensors, BufferId in, BufferId out, bool accumulate,
                            Activation activation) {
      for (Named& tensor : tensors) {
        tensor.name = name + tensor.name;
        targets.push_back(tensor);
      }
      add(LinearOp{in, load(*device, tensors, bytes), out, accumulate, activation});
    };
    add(RmsNormOp{kX, norm, kNormed, 1e-6f});
    linear({{"q", 4096, kHidden}, {"k", 1024, kHidden}, {"v", 1024, kHidden}}, kNormed, kQkvOut, false, {});
    linear({{"o", kHidden, kHidden}}, kNormed, kX, true, {});
    add(RmsNormOp{kX, norm, kNormed, 1e-6f});
    linear({{"gate", kFfn, kHidden}, {"up", kFfn, kHidden}}, kNormed, kInner, false, Activation::kSwiglu);
    linear({{"down", kHidden, kFfn}}, kInner, kX, true, {});
  }
  add(SelectOutputsOp{kX, kOut});
  add(LinearOp{kOut, load(*device, {{"output", kVocabulary, kHidden}}, bytes), kLogits, false, {}});
  const auto plan = device->compile(std::move(spec));

  std::vector<uint16_t> values(static_cast<size_t>(kFfn) * static_cast<size_t>(rank));
  for (uint16_t& value : values) value = float_to_half(0.01f * random.normal());
  const auto span = [&](int64_t count) {
    return std::span(reinterpret_cast<const uint8_t*>(values.data()), static_cast<size_t>(count) * 2);
  };
  std::vector<AdapterTarget> adapter;
  AdapterSlotsSpec slots_spec{8, rank, AdapterType::kF16, {}};
  for (const Named& t : targets) {
    adapter.push_back({t.name,
                       rank,
                       1.0f,
                       {DataType::kF16, span(rank * t.columns)},
                       {DataType::kF16, span(rank * t.rows)},
                       {}});
    slots_spec.targets.push_back(t.name);
  }

  for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
    slots_spec.type = type;
    const double made = now();
    const auto slots = wait<std::shared_ptr<AdapterSlots>>(
        [&](auto done) { device->create_adapter_slots(plan, slots_spec, done); });
    std::printf("%s, %s, %d threads, %d layers, rank %d: 8 slots, %.0f MB each, made in %.0f ms\n",
                type == AdapterType::kF16 ? "f16" : "i8", device->tier().c_str(), threads, layers, rank,
                static_cast<double>(slots->bytes()) / 8e6, (now() - made) * 1e3);
    double swap = 1e9;
    for (int round = 0; round < 3; ++round) {
      for (int32_t slot = 0; slot < 8; ++slot) {
        const double begun = now();
        std::promise<void> loaded;
        device->load_adapter(slots, slot, adapter, nullptr, [&](std::exception_ptr) { loaded.set_value(); });
        loaded.get_future().get();
        swap = std::min(swap, now() - begun);
      }
    }
    std::printf("  swap %.1f ms\n", swap * 1e3);
    // Rows, sequences, adapters.
    const struct {
      int rows, sequences, adapters;
    } cases[] = {{1, 1, 1}, {16, 16, 8}, {16, 16, 1}, {128, 1, 1}};
    for (const auto& c : cases) {
      const auto step_with = [&](bool adapted) {
        Step step;
        step.adapter_slots = slots;
        for (int row = 0; row < c.rows; ++row) step.tokens.push_back(row);
        for (int s = 0; s < c.sequences; ++s) {
          step.sequences.push_back({c.rows / c.sequences, c.rows / c.sequences, {}, {}});
          if (adapted) step.sequences.back().adapters.push_back({s % c.adapters, 1});
        }
        step.outputs = {0};
        return step;
      };
      // Each ratio is of neighbors in time: the machine's memory is not equally fast for long.
      std::vector<double> without, with, ratios;
      for (int pair = 0; pair < (c.rows == 1 ? 80 : c.rows > 16 ? 5 : 15); ++pair) {
        double seconds[2];
        for (const bool adapted : {false, true}) {
          const double begun = now();
          wait<StepResult>([&](auto done) { device->run(plan, step_with(adapted), done); });
          seconds[adapted] = now() - begun;
        }
        without.push_back(seconds[0]);
        with.push_back(seconds[1]);
        ratios.push_back(seconds[1] / seconds[0]);
      }
      std::printf("  %3d rows, %d adapters: %.2f ms without, %.2f ms with: %.3fx\n", c.rows, c.adapters,
                  median(without) * 1e3, median(with) * 1e3, median(ratios));
    }
  }
}
