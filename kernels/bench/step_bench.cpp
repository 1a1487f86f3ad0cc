// Times whole steps of a random model of the 1.7B or 8B shape, those of one row in turn with reading as many
// bytes and doing nothing with them, and the barrier between operations: step_bench [threads] [tier] [1.7b |
// 8b] [layers].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "bench/read_memory.h"
#include "cpu/page_memory.h"
#include "cpu/thread_pool.h"
#include "tests/job.h"
#include "tests/mini_model.h"

using namespace niwaki;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double seconds_of(F&& f) {
  const double begun = now();
  f();
  return now() - begun;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <class F>
double median_of(int runs, F&& f) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) seconds.push_back(seconds_of(f));
  return median(seconds);
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

/// Runs what stands before the rows of `step`.
void fill_context(Device& device, const std::shared_ptr<Plan>& plan, const test::MiniModel& model,
                  const Step& step) {
  for (const StepSequence& sequence : step.sequences) {
    for (int done = 0; done < sequence.context_length;) {
      const int rows = std::min(sequence.context_length - done, static_cast<int>(model.max_rows));
      Step prompt = make_step(model, 1, rows, done += rows);
      prompt.sequences[0].block_table = sequence.block_table;
      test::run(device, plan, prompt);
    }
  }
}

/// Bytes that a step of one row reads: Q1_0 weights and float16 pages.
size_t step_bytes(const test::MiniModel& m, int context) {
  const auto linear = [](int64_t rows, int64_t columns) {
    return row_bytes(DataType::kQ1_0, columns) * static_cast<size_t>(rows);
  };
  const int64_t wide = int64_t{m.heads} * m.head_dim, kv = int64_t{m.kv_heads} * m.head_dim;
  const size_t layer = linear(wide + 2 * kv, m.hidden) + linear(m.hidden, wide) +
                       linear(2 * m.ffn, m.hidden) + linear(m.hidden, m.ffn);
  const size_t pages = static_cast<size_t>(2 * kv * context) * sizeof(uint16_t);
  return static_cast<size_t>(m.layers) * (layer + pages) + linear(m.vocabulary, m.hidden);
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
                        .block_size = 16,
                        .blocks = 512,
                        .quantized_embedding = true};
  std::printf("barrier: %.0f ns\n", barrier_seconds(threads) * 1e9);

  const auto device = Device::open({.threads = threads, .tier = tier});
  const auto plan = device->compile(test::make_spec(*device, model));
  std::printf("%s, %d threads, %d layers\n%-36s %10s %10s %10s %12s\n", device->tier().c_str(),
              device->threads(), model.layers, "step", "ms", "tokens/s", "GB/s", "of reading");
  struct Case {
    const char* name;
    int sequences, rows, context, runs;
  };
  ThreadPool pool(threads);
  for (const int context : {64, 4096}) {
    const Step step = make_step(model, 1, 1, context);
    fill_context(*device, plan, model, step);
    const PageMemory memory(step_bytes(model, context), PageSize::kHuge, "what is read");
    std::memset(memory.data(), 1, memory.size());
    std::vector<double> steps, reads;
    for (int i = 0; i < 51; ++i) {
      // What was read last is in the caches.
      test::run(*device, plan, step);
      steps.push_back(seconds_of([&] { test::run(*device, plan, step); }));
      reads.push_back(
          seconds_of([&] { test::run_job(pool, [&] { read_memory(pool, memory.data(), memory.size()); }); }));
    }
    const std::string name = "1 sequence decoding at " + std::to_string(context);
    const double seconds = median(steps), bytes = static_cast<double>(memory.size());
    std::printf("%-36s %10.3f %10.1f %10.1f %11.0f%%\n", name.c_str(), seconds * 1e3, 1 / seconds,
                bytes / seconds / 1e9, 100 * median(reads) / seconds);
  }
  for (const Case& c :
       {Case{"2 sequences decoding", 2, 1, 64, 51}, Case{"4 sequences decoding", 4, 1, 64, 31},
        Case{"16 sequences decoding", 16, 1, 64, 15}, Case{"prompt of 64", 1, 64, 64, 5},
        Case{"prompt of 512", 1, 512, 512, 3}}) {
    const Step step = make_step(model, c.sequences, c.rows, c.context);
    fill_context(*device, plan, model, step);
    const double seconds = median_of(c.runs, [&] { test::run(*device, plan, step); });
    std::printf("%-36s %10.3f %10.1f\n", c.name, seconds * 1e3, c.sequences * c.rows / seconds);
  }
}
