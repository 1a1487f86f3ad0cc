// Times whole steps of a random model of the 1.7B or 8B shape on a GPU, as a model runs them, with their
// share of what the GPU's memory or its matrix units allow: cuda_step_bench [8b | 1.7b] [layers] [case].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "niwaki/cuda.h"
#include "tests/mini_model.h"

using namespace niwaki;

extern "C" CudaLibrary* niwaki_cuda_library(int32_t abi);

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// `sequences` sequences that end at `context` tokens, with `rows` rows each; the last of each is sampled.
Step make_step(const test::MiniModel& model, int sequences, int rows, int context, int following = 0) {
  Step step;
  const int blocks = (context + following + model.block_size - 1) / model.block_size;
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
  step.following = following;
  return step;
}

/// Seconds of a step: the median of some runs, of which each may be several steps.
double seconds_of(Device& device, const std::shared_ptr<Plan>& plan, const Step& step, int runs) {
  std::vector<double> seconds;
  for (int i = 0; i < runs + 2; ++i) {
    const double begun = now();
    test::run(device, plan, step);
    if (i >= 2) seconds.push_back((now() - begun) / (1 + step.following));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const bool large = argc < 2 || std::string(argv[1]) == "8b";
  const test::MiniModel model{.layers = argc > 2 ? std::atoi(argv[2])
                                        : large  ? 36
                                                 : 28,
                              .hidden = large ? 4096 : 2048,
                              .heads = large ? 32 : 16,
                              .kv_heads = 8,
                              .head_dim = 128,
                              .ffn = large ? 12288 : 6144,
                              .vocabulary = 151'669,
                              .max_rows = 512,
                              .max_outputs = 64,
                              .block_size = 16,
                              .blocks = 2048,
                              .quantized_embedding = true};
  CudaLibrary& library = *niwaki_cuda_library(kCudaAbi);
  const int only = argc > 3 ? std::atoi(argv[3]) : -1;
  const GpuBounds bounds = only < 0 ? library.measure(0) : GpuBounds{1e12, 1e15};
  std::printf("%s: reading %.0f GB/s, products %.0f TFLOP/s\n", library.gpus().at(0).name.c_str(),
              bounds.bytes_per_second * 1e-9, bounds.flops_per_second * 1e-12);
  const double begun = now();
  const auto device = library.open(0);
  const auto plan = device->compile(test::make_spec(*device, model));
  std::printf("loaded in %.1f s\n", now() - begun);

  const int64_t wide = int64_t{model.heads} * model.head_dim, kv = int64_t{model.kv_heads} * model.head_dim;
  const double layer = static_cast<double>((wide + 2 * kv) * model.hidden + model.hidden * wide +
                                           int64_t{3} * model.ffn * model.hidden);
  const double layers = layer * model.layers, head = double(model.vocabulary) * model.hidden;
  // No page is read before it is written.
  constexpr int kRows = 512;
  for (int first = 0; first < (only < 0 ? model.blocks : 1); first += kRows / model.block_size) {
    Step prompt = make_step(model, 1, kRows, kRows);
    for (int32_t& block : prompt.sequences[0].block_table) block += first;
    test::run(*device, plan, prompt);
  }

  struct Case {
    int sequences, rows, context, following, runs;
  };
  std::printf("%-40s %9s %10s %9s %9s\n", "step", "us", "tokens/s", "of bytes", "of flops");
  int index = 0;
  for (const Case& c :
       {Case{1, 1, 64, 31, 9}, Case{1, 1, 512, 31, 5}, Case{1, 1, 2048, 31, 5}, Case{4, 1, 64, 31, 5},
        Case{8, 1, 64, 31, 5}, Case{16, 1, 64, 31, 5}, Case{32, 1, 64, 31, 5}, Case{64, 1, 64, 31, 5},
        Case{1, 128, 128, 0, 9}, Case{1, 512, 512, 0, 9}}) {
    if (only >= 0 && only != index++) continue;
    const double seconds =
        seconds_of(*device, plan, make_step(model, c.sequences, c.rows, c.context, c.following), c.runs);
    const double bytes = (layers + head) * 18 / 128 + 4.0 * kv * model.layers * c.sequences * c.context;
    const double flops = 2 * (layers * c.sequences * c.rows + head * c.sequences);
    std::printf("%3d x %3d rows at %4d %*s %9.1f %10.0f %8.1f%% %8.1f%%\n", c.sequences, c.rows, c.context,
                17, "", seconds * 1e6, c.sequences * c.rows / seconds,
                100 * bytes / bounds.bytes_per_second / seconds,
                100 * flops / bounds.flops_per_second / seconds);
  }
  return 0;
}
