// Times whole steps of a random model of the 1.7B or 8B shape, and the barrier between operations:
// step_bench [threads] [tier] [1.7b | 8b] [layers].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "cpu/thread_pool.h"
#include "tests/job.h"
#include "tests/mini_model.h"

using namespace niwaki;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double median_of(int runs, F&& f) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const double begun = now();
    f();
    seconds.push_back(now() - begun);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

/// Seconds from the begin of a phase that does nothing to the begin of the next.
double barrier_seconds(int threads) {
  ThreadPool pool(threads);
  constexpr int kPhases = 100'000;
  const double seconds = median_of(5, [&] {
    test::run_job(pool, [&] {
      for (int i = 0; i < kPhases; ++i) {
        pool.parallel([&](Worker& worker) { worker.each(worker.count(), 1, [](int64_t, int64_t) {}); });
      }
    });
  });
  return seconds / kPhases;
}

/// `sequences` sequences that end at `context` tokens, with `rows` rows each; the last of each is sampled.
Step make_step(const test::MiniModel& model, int sequences, int rows, int context) {
  Step step;
  const int blocks = (context + model.block_size - 1) / model.block_size;
  for (int s = 0; s < sequences; ++s) {
    std::vector<int32_t> table(static_cast<size_t>(blocks));
    std::iota(table.begin(), table.end(), s * blocks);
    step.sequences.push_back({rows, context, table});
    for (int r = 0; r < rows; ++r) step.tokens.push_back((s * 7919 + r * 104729) % model.vocabulary);
    step.outputs.push_back(s * rows + rows - 1);
    SampleSpec sample;
    sample.output = s;
    step.samples.push_back(sample);
  }
  return step;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string tier = argc > 2 ? argv[2] : "";
  const bool large = argc > 3 && std::string(argv[3]) == "8b";
  test::MiniModel model{.layers = argc > 4 ? std::atoi(argv[4])
                                  : large  ? 36
                                           : 28,
                        .hidden = large ? 4096 : 2048,
                        .heads = large ? 32 : 16,
                        .kv_heads = 8,
                        .head_dim = 128,
                        .ffn = large ? 12288 : 6144,
                        .vocabulary = 151'669,
                        .max_rows = 512,
                        .max_outputs = 16,
                        .block_size = 32,
                        .blocks = 128,
                        .quantized_embedding = true};
  std::printf("barrier: %.0f ns\n", barrier_seconds(threads) * 1e9);

  const auto device = Device::open({.threads = threads, .tier = tier});
  const auto plan = device->compile(test::make_spec(*device, model));
  std::printf("%s, %d threads, %d layers\n%-36s %10s %10s\n", device->tier().c_str(), device->threads(),
              model.layers, "step", "ms", "tokens/s");
  struct Case {
    const char* name;
    int sequences, rows, context, runs;
  };
  for (const Case& c :
       {Case{"1 sequence decoding", 1, 1, 64, 101}, Case{"2 sequences decoding", 2, 1, 64, 51},
        Case{"4 sequences decoding", 4, 1, 64, 31}, Case{"16 sequences decoding", 16, 1, 64, 15},
        Case{"prompt of 64", 1, 64, 64, 5}, Case{"prompt of 512", 1, 512, 512, 3}}) {
    const Step step = make_step(model, c.sequences, c.rows, c.context);
    for (const StepSequence& sequence : step.sequences) {  // what stands before the timed rows
      Step prompt = make_step(model, 1, c.context, c.context);
      prompt.sequences[0].block_table = sequence.block_table;
      test::run(*device, plan, prompt);
    }
    const double seconds = median_of(c.runs, [&] { test::run(*device, plan, step); });
    std::printf("%-36s %10.3f %10.1f\n", c.name, seconds * 1e3, c.sequences * c.rows / seconds);
  }
}
