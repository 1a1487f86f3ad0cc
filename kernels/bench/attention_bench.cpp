// Times attention over pages that are larger in all than any cache, against reading them once and doing
// nothing with them: attention_bench [threads] [tier] [f16 | f32 | q8] [in-order | scattered]. The blocks of
// a sequence follow each other, as from a pool that has many free, or lie anywhere.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/read_memory.h"
#include "cpu/plan.h"
#include "cpu/weight_memory.h"
#include "tests/job.h"
#include "tests/random.h"

using namespace niwaki;

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class F>
double best_of(int runs, F&& f) {
  double best = 1e9;
  for (int i = 0; i < runs; ++i) {
    const double begun = now();
    f();
    best = std::min(best, now() - begun);
  }
  return best;
}

struct Shape {
  const char* name;
  int32_t layers;
  QkvLayout layout;
};
constexpr Shape kShapes[] = {{"8B", 36, {32, 8, 128}}, {"1.7B", 28, {16, 8, 128}}};
constexpr int32_t kBlockSize = 16, kRows = 256;
constexpr size_t kPagesBytes = size_t{256} << 20;

KvType type_named(const std::string& name) {
  if (name == "f16") return KvType::kF16;
  if (name == "f32") return KvType::kF32;
  if (name == "q8") return KvType::kQ8;
  std::fprintf(stderr, "unknown type %s\n", name.c_str());
  std::exit(2);
}

/// Attention alone, in as many layers as fill the memory that is to be read.
PlanSpec attention_of(const Shape& shape, const std::shared_ptr<CpuKvCache>& kv,
                      const std::shared_ptr<const Matrix>& table) {
  const int32_t out = shape.layout.heads * shape.layout.head_dim;
  enum : BufferId { kQkv, kAttention, kLogits };
  PlanSpec spec{kRows, 1, out, kBlockSize, {}, {}, kLogits};
  spec.buffers = {{table->columns(), false}, {out, false}, {out, true}};
  spec.ops.push_back({EmbedOp{table, kQkv}, "embed"});
  for (int32_t l = 0; l < kv->shape().layers; ++l)
    spec.ops.push_back({PagedAttentionOp{kQkv, shape.layout, kv, l, kAttention}, "attention"});
  spec.ops.push_back({SelectOutputsOp{kAttention, kLogits}, "select"});
  return spec;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Tier& tier = choose_tier(argc > 2 ? argv[2] : "");
  const std::string type = argc > 3 ? argv[3] : "f16";
  const bool scattered = argc > 4 && std::string(argv[4]) == "scattered";

  ThreadPool pool(threads);
  test::Random random(1);
  WeightArena arena;
  std::printf("%s, %s, %d threads, blocks %s\n", type.c_str(), tier.name, threads,
              scattered ? "scattered" : "in order");
  std::printf("%6s %8s | %9s %10s %10s %11s | %12s %10s\n", "shape", "context", "read GB/s", "decode ms",
              "GB/s", "of reading", "256 rows ms", "GFMA/s");
  for (const Shape& shape : kShapes) {
    const QkvLayout& l = shape.layout;
    const int64_t width = int64_t{l.heads + 2 * l.kv_heads} * l.head_dim,
                  tokens = int64_t{l.heads} * l.head_dim;
    const size_t row = row_bytes(DataType::kQ1_0, width);
    std::vector<uint8_t> bits(row * static_cast<size_t>(tokens));
    for (uint8_t& byte : bits) byte = static_cast<uint8_t>(random.next());
    for (size_t i = 1; i < bits.size(); i += 18) bits[i] = 0x24;  // a scale of about 2^-6
    const std::vector<MatrixSource> source = {{"table", DataType::kQ1_0, tokens, bits.data()}};
    std::shared_ptr<const Matrix> table;
    test::run_job(pool, [&] { table = CpuMatrix::pack(source, width, tier.linear.sign_order, pool, arena); });

    for (const int32_t context : {512, 2048, 4096, 8192}) {
      KvShape pages{1, l.kv_heads, l.head_dim, kBlockSize, context / kBlockSize, type_named(type)};
      const size_t layer_bytes = CpuKvCache(pages).bytes();
      pages.layers = static_cast<int32_t>((kPagesBytes + layer_bytes - 1) / layer_bytes);
      const auto kv = std::make_shared<CpuKvCache>(pages);
      std::memset(kv->keys(0, 0, 0), 0x2c, kv->bytes());  // small numbers in every type
      CpuPlan plan(attention_of(shape, kv, table), tier, pool, nullptr);

      std::vector<int32_t> blocks(static_cast<size_t>(pages.blocks));
      for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(i);
      for (size_t i = scattered ? blocks.size() : 0; i-- > 1;)
        std::swap(blocks[i], blocks[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
      const std::atomic<bool> cancelled{false};
      const auto run = [&](int32_t rows) {
        Step step;
        for (int32_t r = 0; r < rows; ++r) step.tokens.push_back(r);
        step.sequences = {{rows, context, blocks}};
        return best_of(rows > 1 ? 1 : 5, [&] { test::run_job(pool, [&] { plan.run(step, cancelled); }); });
      };
      const double read = best_of(
          5, [&] { test::run_job(pool, [&] { read_memory(pool, kv->keys(0, 0, 0), kv->bytes()); }); });
      const double decode = run(1);
      const double bytes = static_cast<double>(kv->bytes()), layers = pages.layers;
      const double many = run(kRows);
      const double products = layers * 2 * l.heads * l.head_dim * kRows * (context - (kRows - 1) / 2.0);
      std::printf("%6s %8d | %9.1f %10.3f %10.1f %10.0f%% | %12.2f %10.1f\n", shape.name, context,
                  bytes / read / 1e9, decode / layers * shape.layers * 1e3, bytes / decode / 1e9,
                  100 * read / decode, many / layers * shape.layers * 1e3, products / many / 1e9);
    }
  }
}
