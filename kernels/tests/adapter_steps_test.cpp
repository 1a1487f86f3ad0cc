// Adapters in the steps of a whole model.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "adapters.h"
#include "check.h"
#include "errors.h"
#include "mini_model.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

std::shared_ptr<Device> open(int threads = 2, const std::string& tier = "") {
  return Device::open({threads, tier});
}

/// A sequence of the mini model, with the logits of all its positions.
struct Sequence {
  std::vector<int32_t> tokens;
  std::vector<int32_t> table;
  std::vector<AdapterUse> mix;
  std::vector<float> logits = {};
  int done = 0;
};

/// One step: the next `rows[i]` tokens of every sequence.
void advance(Device& device, const std::shared_ptr<Plan>& plan, const std::shared_ptr<AdapterSlots>& slots,
             const std::vector<Sequence*>& sequences, const std::vector<int>& rows) {
  Step step;
  step.want_logits = true;
  step.adapter_slots = slots;
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    step.tokens.insert(step.tokens.end(), s.tokens.begin() + s.done, s.tokens.begin() + s.done + rows[i]);
    s.done += rows[i];
    step.sequences.push_back({rows[i], s.done, s.table, s.mix});
  }
  step.outputs.resize(step.tokens.size());
  std::iota(step.outputs.begin(), step.outputs.end(), 0);
  const StepResult result = run(device, plan, step);
  auto from = result.logits.begin();
  for (size_t i = 0; i < sequences.size(); ++i) {
    sequences[i]->logits.insert(sequences[i]->logits.end(), from, from + rows[i] * 300);
    from += rows[i] * 300;
  }
}

/// Eight adapters of the mini model: of all or a few tensors, of many ranks, two of them DoRA.
std::vector<std::vector<Pair>> mini_adapters() {
  const MiniModel m;
  const struct {
    std::string name;
    int64_t rows, columns;
  } tensors[] = {{"blk.0.attn_qkv.0", 512, 256},    {"blk.1.attn_qkv.0", 512, 256},
                 {"blk.0.attn_output.0", 256, 256}, {"blk.1.attn_output.0", 256, 256},
                 {"blk.0.ffn_gate_up.0", 384, 256}, {"blk.1.ffn_gate_up.0", 384, 256},
                 {"blk.0.ffn_gate_up.1", 384, 256}, {"blk.1.ffn_gate_up.1", 384, 256},
                 {"blk.0.ffn_down.0", 256, 384},    {"blk.1.ffn_down.0", 256, 384}};
  const int ranks[] = {1, 2, 4, 5, 8, 16, 17, 20};
  std::vector<std::vector<Pair>> adapters;
  for (uint64_t i = 0; i < 8; ++i) {
    std::vector<Pair>& adapter = adapters.emplace_back();
    for (uint64_t t = 0; t < std::size(tensors); ++t) {
      if (i % 2 == 1 && t % 3 != i % 3) continue;
      adapter.emplace_back(tensors[t].name, tensors[t].rows, tensors[t].columns, ranks[i], DataType::kF16,
                           1000 * i + 10 * t, i >= 6);
    }
  }
  return adapters;
}

std::vector<std::string> mini_targets() {
  std::vector<std::string> names;
  const auto adapters = mini_adapters();
  for (const Pair& pair : adapters[0]) names.push_back(pair.target.tensor);
  return names;
}

std::vector<AdapterTarget> targets_of(const std::vector<Pair>& adapter) {
  std::vector<AdapterTarget> targets;
  for (const Pair& pair : adapter) targets.push_back(pair.target);
  return targets;
}

std::vector<AdapterUse> mix_of(int sequence) {
  if (sequence % 4 == 3) return {};
  if (sequence == 4) return {{7, 0.5f}, {0, 1}};
  if (sequence == 5 || sequence == 12) return {{0, 1}, {7, 0.5f}, {2, -0.25f}};
  return {{sequence % 8, 1}};
}

std::vector<Sequence> sixteen_sequences(int length) {
  std::vector<Sequence> sequences;
  Random random(4);
  for (int i = 0; i < 16; ++i) {
    Sequence s{{}, {2 * i, 2 * i + 1}, mix_of(i)};
    for (int t = 0; t < length; ++t) s.tokens.push_back(static_cast<int32_t>(random.below(300)));
    sequences.push_back(s);
  }
  return sequences;
}

}  // namespace

TEST(the_same_sequence_has_the_same_bits_whatever_adapters_run_beside_it) {
  constexpr int kLength = 20;
  const std::vector<std::vector<Pair>> adapters = mini_adapters();
  for (const AdapterType type : {AdapterType::kF16, AdapterType::kI8}) {
    std::vector<Sequence> expected = sixteen_sequences(kLength);
    bool first = true;
    for (const std::string& tier : Device::tiers()) {
      for (const int threads : {1, 3}) {
        const auto device = open(threads, tier);
        const auto plan = device->compile(make_spec(*device, MiniModel{}));
        const auto slots = make_slots(*device, plan, {8, 20, type, mini_targets()});
        for (size_t i = 0; i < 8; ++i) load(*device, slots, static_cast<int32_t>(i), targets_of(adapters[i]));
        if (first) {
          // Each alone, its prompt whole; without an adapter also without slots.
          for (size_t i = 0; i < 16; ++i) {
            Sequence& s = expected[i];
            advance(*device, plan, s.mix.empty() ? nullptr : slots, {&s}, {kLength});
            CHECK(std::all_of(s.logits.begin(), s.logits.end(), [](float x) { return std::isfinite(x); }));
            CHECK(i == 0 || s.logits != expected[i - 1].logits);
          }
          Sequence bare = expected[0];
          bare.mix.clear(), bare.logits.clear(), bare.done = 0;
          advance(*device, plan, slots, {&bare}, {kLength});
          CHECK(bare.logits != expected[0].logits);
          first = false;
        }
        // All sixteen together: some still in their prompts, some decoding.
        std::vector<Sequence> together = sixteen_sequences(kLength);
        for (int step = 0; step < 40; ++step) {
          std::vector<Sequence*> running;
          std::vector<int> rows;
          int room = 64;
          for (int i = 0; i < 16; ++i) {
            Sequence& s = together[static_cast<size_t>(i)];
            const int chunk = std::min({step % 3 == 0 ? 1 + i % 5 : 1, kLength - s.done, room});
            if (chunk == 0) continue;
            running.push_back(&s);
            rows.push_back(chunk);
            room -= chunk;
          }
          if (running.empty()) break;
          advance(*device, plan, slots, running, rows);
        }
        for (size_t i = 0; i < 16; ++i) CHECK(together[i].logits == expected[i].logits);
        // Long prompts at once, in several tiles of rows.
        for (const std::vector<int>& some : {std::vector{0, 5, 1}, std::vector{0, 5, 1, 12}}) {
          const int chunk = std::min(kLength, 64 / static_cast<int>(some.size()));
          std::vector<Sequence> prompts;
          std::vector<Sequence*> running;
          for (const int i : some) prompts.push_back(sixteen_sequences(kLength)[static_cast<size_t>(i)]);
          for (Sequence& s : prompts) running.push_back(&s);
          advance(*device, plan, slots, running, std::vector<int>(some.size(), chunk));
          if (chunk < kLength)
            advance(*device, plan, slots, running, std::vector<int>(some.size(), kLength - chunk));
          for (size_t i = 0; i < some.size(); ++i)
            CHECK(prompts[i].logits == expected[static_cast<size_t>(some[i])].logits);
        }
      }
    }
  }
}

TEST(few_rows_have_the_same_bits_whether_an_adapter_touches_what_reads_them_or_not) {
  constexpr int kLength = 6;
  // Two sequences with adapters of attention's output or of down alone, beside one without.
  const std::vector<std::vector<Pair>> adapters = {{{"blk.0.attn_output.0", 256, 256, 4, DataType::kF16, 1},
                                                    {"blk.1.ffn_down.0", 256, 384, 4, DataType::kF16, 2}},
                                                   {{"blk.1.attn_output.0", 256, 256, 5, DataType::kF16, 3},
                                                    {"blk.0.ffn_gate_up.1", 384, 256, 5, DataType::kF16, 4}}};
  for (const int threads : {1, 2, 5}) {
    const auto device = open(threads);
    const auto plan = device->compile(make_spec(*device, MiniModel{}));
    const auto slots = make_slots(*device, plan, {2, 5, AdapterType::kF16, mini_targets()});
    for (size_t i = 0; i < 2; ++i) load(*device, slots, static_cast<int32_t>(i), targets_of(adapters[i]));
    const auto three = [] {
      std::vector<Sequence> sequences = sixteen_sequences(kLength);
      sequences.resize(3);
      sequences[0].mix = {{0, 1}}, sequences[1].mix = {}, sequences[2].mix = {{1, 1}};
      return sequences;
    };
    std::vector<Sequence> whole = three(), alone = three(), together = three();
    for (Sequence& s : whole) advance(*device, plan, slots, {&s}, {kLength});
    for (Sequence& s : alone) {
      while (s.done < kLength) advance(*device, plan, slots, {&s}, {1});
    }
    while (together[0].done < kLength)
      advance(*device, plan, slots, {&together[0], &together[1], &together[2]}, {1, 1, 1});
    for (size_t i = 0; i < 3; ++i) {
      CHECK(alone[i].logits == whole[i].logits);
      CHECK(together[i].logits == whole[i].logits);
    }
  }
}

TEST(a_slot_is_used_again) {
  const auto device = open();
  const auto plan = device->compile(make_spec(*device, MiniModel{}));
  const auto slots = make_slots(*device, plan, {2, 20, AdapterType::kF16, mini_targets()});
  const std::vector<std::vector<Pair>> adapters = mini_adapters();
  const auto logits = [&](int32_t slot) {
    Sequence s{{1, 2, 3}, {0}, {{slot, 1}}};
    advance(*device, plan, slots, {&s}, {3});
    return s.logits;
  };
  // A high rank on all tensors, then a low one on a few.
  load(*device, slots, 0, targets_of(adapters[7]));
  load(*device, slots, 0, targets_of(adapters[6]));
  load(*device, slots, 0, targets_of(adapters[1]));
  load(*device, slots, 1, targets_of(adapters[1]));
  CHECK(logits(0) == logits(1));
  load(*device, slots, 0, {});
  CHECK(contains(message_of(ErrorCode::kInvalidArgument, [&] { logits(0); }), "slot 0, which is empty"));
  CHECK(slots->bytes() > 0 && slots->shapes()[0].rows == 512 && slots->shapes()[0].columns == 256);
}

TEST_MAIN()
