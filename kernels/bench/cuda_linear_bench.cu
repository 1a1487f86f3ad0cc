// Times products of the 8B shape on a GPU, as kernels of one graph that start early, over so many matrices
// that no cache holds them, with their share of what memory and the matrix units allow, and tiles of every
// shape: cuda_linear_bench [rows of the step].
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "bench/cuda_launches.h"
#include "cuda/bounds.h"
#include "cuda/linear_kernels.h"
#include "cuda/memory.h"
#include "cuda/rows.h"

using namespace niwaki;
using namespace niwaki::cuda;

namespace {

struct Case {
  const char* name;
  int64_t rows, columns;
  Epilogue epilogue;
};

}  // namespace

int main(int argc, char** argv) {
  const int only = argc > 1 ? std::atoi(argv[1]) : 0;
  const GpuBounds bounds = measure_bounds();
  int multiprocessors;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "device");
  std::printf("reading %.0f GB/s, products %.0f TFLOP/s\n", bounds.bytes_per_second * 1e-9,
              bounds.flops_per_second * 1e-12);
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  const size_t weight_bytes = size_t{400} << 20;
  const DeviceMemory words(weight_bytes, "weights"), scales(weight_bytes / 8, "scales"),
      counts(256, "counts"), bad(256, "bad"), norm(1 << 20, "norm");
  launch(fill, {dim3(1024), dim3(256)}, stream, words.at<uint32_t>(), weight_bytes / 4, 1u, ~0u, 0u);
  launch(fill, {dim3(1024), dim3(256)}, stream, scales.at<uint32_t>(), weight_bytes / 32, 2u, 0x03ff03ffu,
         0x20002000u);
  launch(fill, {dim3(64), dim3(256)}, stream, norm.at<uint32_t>(), size_t{1} << 18, 3u, 0x007fffffu,
         0x3f800000u);
  check(cudaMemset(counts.at<void>(), 0, 256), "counts");
  check(cudaMemset(bad.at<void>(), 0xff, 256), "bad");
  StepView step{};
  step.counts = counts.at<const StepView::Counts>();
  step.first_bad = bad.at<unsigned long long>();

  const Case cases[] = {{"qkv", 6144, 4096, Epilogue::kStore},
                        {"attn_output", 4096, 4096, Epilogue::kAdd},
                        {"gate, up", 24576, 4096, Epilogue::kSwiglu},
                        {"down", 4096, 12288, Epilogue::kAdd},
                        {"output", 151669, 4096, Epilogue::kStore}};
  for (const Case& c : cases) {
    const auto tiles = static_cast<int32_t>((c.rows + 127) / 128 * 8),
               units = static_cast<int32_t>(c.columns / 256);
    const auto matrix_units = static_cast<size_t>(tiles) * static_cast<size_t>(units);
    const int copies = static_cast<int>(std::min<size_t>(24, weight_bytes / (matrix_units * 512)));
    std::vector<MatrixRun> runs;
    for (int i = 0; i < copies; ++i) {
      runs.push_back({DataType::kQ1_0,
                      0,
                      c.rows,
                      c.columns,
                      c.epilogue == Epilogue::kSwiglu,
                      {1, tiles, units, words.at<const uint4>(static_cast<size_t>(i) * matrix_units * 512),
                       scales.at<const uint2>(static_cast<size_t>(i) * matrix_units * 64)},
                      nullptr});
    }
    for (const int rows : {1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512}) {
      if ((rows > 64 && c.rows > 100000) || (only > 0 && rows != only)) continue;
      const QuantizedLayout layout = quantized_layout(1, rows);
      const QuantizedBytes size(layout, rows, c.columns);
      const DeviceMemory quantized(size.data + size.scales + size.sums, "rows"),
          x(static_cast<size_t>(rows) * static_cast<size_t>(c.columns) * 4, "x"),
          y(static_cast<size_t>(rows) * static_cast<size_t>(c.rows) * 4, "y");
      launch(fill, {dim3(256), dim3(256)}, stream, x.at<uint32_t>(), x.size() / 4, 5u, 0x83ffffffu,
             0x3c000000u);
      check(cudaMemsetAsync(y.at<void>(), 0, y.size(), stream), "y");
      const Quantized in{layout, rows, quantized.at<uint8_t>(), quantized.at<float>(size.data),
                         quantized.at<int32_t>(size.data + size.scales)};
      const FloatRows floats{x.at<float>(), c.columns}, out{y.at<float>(), c.rows};
      const Preparation prepare{
          floats,    static_cast<int32_t>(c.columns), {norm.at<const float>(), 1e-6f}, 0, {}, 1, {in},
          {0, false}};
      const double bytes = static_cast<double>(c.rows) * static_cast<double>(c.columns) * 18 / 128;
      const double flops = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.columns) * rows;
      const auto report = [&](const char* what, double seconds) {
        std::printf("%-12s %4d rows %-18s %8.2f us %5.0f%% of bytes %5.0f%% of flops\n", c.name, rows, what,
                    seconds * 1e6, 100 * bytes / bounds.bytes_per_second / seconds,
                    100 * flops / bounds.flops_per_second / seconds);
      };
      const int launches = std::max(copies, 8);
      const double preparing =
          seconds_of(stream, launches, [&](int) { prepare_rows(step, prepare, rows, stream); });
      report("norm, quantize", preparing);
      SignProduct product{nullptr, rows, in, out, c.epilogue};
      if (rows <= kPlaneRows) {
        const auto multiply = [&](int i) {
          product.run = &runs[static_cast<size_t>(i % copies)];
          multiply_sign(product, multiprocessors, stream);
        };
        report(rows == 1 ? "quantized row" : "planes", seconds_of(stream, launches, multiply));
        if (rows > 1) continue;
        RowProduct row{nullptr, floats.data, prepare.norm, 0, 0, {}, out, c.epilogue, {}, 0};
        const auto multiply_floats = [&](int i) {
          row.run = &runs[static_cast<size_t>(i % copies)];
          multiply_row(step, row, multiprocessors, stream);
        };
        report("row of floats", seconds_of(stream, launches, multiply_floats));
        if (c.epilogue != Epilogue::kSwiglu) continue;
        const QuantizedBytes next(layout, 1, c.rows / 2);
        const DeviceMemory results(next.data + next.scales + next.sums, "rows");
        row.out.data = nullptr;
        row.next = {layout, 1, results.at<uint8_t>(), results.at<float>(next.data),
                    results.at<int32_t>(next.data + next.scales)};
        report("to quantized", seconds_of(stream, launches, multiply_floats));
        continue;
      }
      for (int tile = 0; tile < kTileShapes; ++tile) {
        if (!tile_fits(tile, rows)) continue;
        const auto multiply = [&](int i) {
          product.run = &runs[static_cast<size_t>(i % copies)];
          multiply_tiles(product, tile, stream);
        };
        char name[32];
        std::snprintf(name, sizeof name, "tile %d%s", tile,
                      tile == tile_of(c.rows, rows, multiprocessors) ? " (taken)" : "");
        report(name, seconds_of(stream, launches, multiply));
      }
    }
  }
  return 0;
}
