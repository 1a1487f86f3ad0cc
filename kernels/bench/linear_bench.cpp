// Times the matrix kernels on matrices of the 8B shape, larger in all than any cache, against reading their
// bytes and doing nothing with them at about the same time (neighbors on a shared machine come and go):
// linear_bench [threads] [tier] [type] [layers] [rows at most].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bench/read_memory.h"
#include "cpu/linear.h"
#include "cpu/linear_kernels.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
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
  int64_t rows, columns;
  Activation activation;
};
constexpr Shape kShapes[] = {{6144, 4096, Activation::kNone},
                             {4096, 4096, Activation::kNone},
                             {24576, 4096, Activation::kSwiglu},
                             {4096, 12288, Activation::kNone}};

struct Bound {
  std::shared_ptr<const CpuMatrix> matrix;
  std::unique_ptr<Linear> linear;
};

DataType type_named(const std::string& name) {
  for (int t = 0; t <= static_cast<int>(DataType::kQ2_0_G128); ++t) {
    if (name == info(static_cast<DataType>(t)).name) return static_cast<DataType>(t);
  }
  std::fprintf(stderr, "unknown type %s\n", name.c_str());
  std::exit(2);
}

double read_seconds(ThreadPool& pool, const std::vector<Bound>& layers) {
  return best_of(4, [&] {
    test::run_job(pool, [&] {
      for (const Bound& bound : layers)
        read_memory(pool, bound.matrix->parts()[0].data, bound.matrix->bytes());
    });
  });
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Tier& tier = choose_tier(argc > 2 ? argv[2] : "");
  const DataType type = type_named(argc > 3 ? argv[3] : "Q1_0");
  const int copies = argc > 4 ? std::atoi(argv[4]) : 8;
  constexpr int kMaxRows = 256;
  const int max_rows = argc > 5 ? std::atoi(argv[5]) : kMaxRows;

  ThreadPool pool(threads);
  test::Random random(1);
  std::vector<Bound> layers;
  WeightArena arena;
  double file_bytes = 0, weights = 0, pack_seconds = 0;
  for (int copy = 0; copy < copies; ++copy) {
    for (const Shape& shape : kShapes) {
      std::vector<uint8_t> bytes(static_cast<size_t>(shape.rows) * row_bytes(type, shape.columns));
      for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        const uint64_t word = random.next();
        std::memcpy(bytes.data() + i, &word, 8);
      }
      // A scale of about 2^-6 in every block, whatever stands behind it.
      for (size_t i = 0; i < bytes.size() && info(type).block > 1;
           i += static_cast<size_t>(info(type).block_bytes)) {
        bytes[i + 1] = 0x24;
      }
      const int64_t half = shape.rows / 2;
      const std::vector<MatrixSource> sources = {
          {"first", type, half, bytes.data()},
          {"second", type, half, bytes.data() + static_cast<size_t>(half) * row_bytes(type, shape.columns)}};
      Bound bound;
      const double begun = now();
      test::run_job(pool, [&] {
        bound.matrix = CpuMatrix::pack(sources, shape.columns, tier.linear.sign_order, pool, arena);
      });
      pack_seconds += now() - begun;
      bound.linear = std::make_unique<Linear>(tier, *bound.matrix, shape.activation, false, kMaxRows);
      file_bytes += static_cast<double>(bytes.size());
      weights += static_cast<double>(shape.rows * shape.columns);
      layers.push_back(std::move(bound));
    }
  }
  size_t scratch_bytes = 0;
  for (const Bound& bound : layers)
    scratch_bytes = std::max(scratch_bytes, bound.linear->scratch_bytes(threads));
  auto* scratch = static_cast<std::byte*>(std::aligned_alloc(64, (scratch_bytes + 63) / 64 * 64));
  const std::vector<float> x = random.normals(static_cast<size_t>(kMaxRows) * 12288);
  std::vector<float> y(static_cast<size_t>(kMaxRows) * 24576);

  const double whole = 7.57e9 / weights;  // of the 8B with its LM head
  ThreadPool one(1);
  std::printf(
      "%s, %s, %d threads: %.0f MB of weights packed at %.2f GB/s, read at %.1f GB/s (one thread %.1f)\n",
      info(type).name, tier.name, threads, file_bytes / 1e6, file_bytes / pack_seconds / 1e9,
      file_bytes / read_seconds(pool, layers) / 1e9, file_bytes / read_seconds(one, layers) / 1e9);
  std::printf("%6s %12s %14s %10s %12s\n", "rows", "ms", "8B tokens/s", "GB/s", "of reading");
  for (const int rows : {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13,  14,
                         15, 16, 17, 20, 24, 28, 32, 33, 40, 48, 56, 64, 128, 256}) {
    if (rows > max_rows) break;
    const double seconds = best_of(rows > 32 ? 3 : 5, [&] {
      test::run_job(pool, [&] {
        for (const Bound& bound : layers)
          bound.linear->run(pool, rows, x.data(), 12288, y.data(), 24576, scratch);
      });
    });
    const double read = read_seconds(pool, layers);
    std::printf("%6d %12.3f %14.1f %10.1f %11.0f%%\n", rows, seconds * 1e3, rows / (seconds * whole),
                file_bytes / seconds / 1e9, 100 * read / seconds);
  }
  std::free(scratch);
}
