// Times attention of the 8B shape on a GPU, as kernels of one graph that start early, each with pages of its
// own, and one row of it between the products beside it: cuda_attention_bench.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "bench/cuda_launches.h"
#include "cuda/attention.h"
#include "cuda/linear.h"
#include "cuda/memory.h"
#include "cuda/rows.h"

using namespace niwaki;
using namespace niwaki::cuda;

namespace {

constexpr int kLayers = 36, kHidden = 4096, kBlockTokens = 16;
constexpr QkvLayout kLayout{32, 8, 128};
constexpr int kWidth = (32 + 2 * 8) * 128;

/// Memory of floats between 0.5 and 1, of both signs if `both`, or of words of these bits.
DeviceMemory filled(size_t bytes, bool both, uint32_t mask = 0x007fffffu, uint32_t bits = 0x3f000000u) {
  DeviceMemory memory(bytes, "a benchmark");
  launch(fill, {dim3(1024), dim3(256)}, nullptr, memory.at<uint32_t>(), bytes / 4, 1u,
         both ? mask | 0x80000000u : mask, bits);
  return memory;
}

template <class T>
DeviceMemory uploaded(const std::vector<T>& values) {
  DeviceMemory memory(std::max<size_t>(256, values.size() * sizeof(T)), "a benchmark");
  check(cudaMemcpy(memory.at<void>(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "uploading");
  return memory;
}

/// A step in device memory, and what its attention takes.
struct Case {
  Case(int sequences, int rows_of_each, int context, int multiprocessors)
      : rows(sequences * rows_of_each), wide(rows_of_each > 4) {
    const int blocks = (context + kBlockTokens - 1) / kBlockTokens;
    Step step;
    std::vector<int32_t> positions, of_rows, begins, tables(static_cast<size_t>(sequences * blocks));
    std::iota(tables.begin(), tables.end(), 0);
    for (int s = 0; s < sequences; ++s) {
      step.sequences.push_back(
          {rows_of_each, context, {tables.begin() + s * blocks, tables.begin() + (s + 1) * blocks}});
      begins.push_back(s * blocks);
      for (int i = 0; i < rows_of_each; ++i) {
        positions.push_back(context - rows_of_each + i);
        of_rows.push_back(s);
      }
    }
    step.tokens.resize(static_cast<size_t>(rows));
    const AttentionShape shape{kLayout, attention_records(kLayout, rows, 1 << 17), multiprocessors,
                               kBlockTokens, wide};
    std::vector<AttentionItem> list;
    list_attention(step, shape, list);
    count = static_cast<int>(list.size());
    list.resize(std::max(list.size(), static_cast<size_t>(kMostAttentionBlocks * multiprocessors)));
    items = uploaded(list);
    counts = uploaded(std::vector<int32_t>{rows, 0, sequences, count});
    this->positions = uploaded(positions);
    this->sequences = uploaded(of_rows);
    this->begins = uploaded(begins);
    this->tables = uploaded(tables);
    first_bad = uploaded(std::vector<unsigned long long>{~0ull});
    scratch_memory = DeviceMemory(attention_scratch_bytes(shape.records, kLayout.head_dim), "scratch");
    check(cudaMemset(scratch_memory.at<void>(), 0, scratch_memory.size()), "scratch");
    scratch = attention_scratch(scratch_memory.at<void>(), shape.records, kLayout.head_dim);
    const QuantizedLayout layout = quantized_layout(1, rows);
    const QuantizedBytes bytes(layout, rows, kHidden);
    quantized_memory = DeviceMemory(bytes.data + bytes.scales + bytes.sums, "rows");
    quantized = {layout, rows, quantized_memory.at<uint8_t>(), quantized_memory.at<float>(bytes.data),
                 quantized_memory.at<int32_t>(bytes.data + bytes.scales)};
    qkv = filled(static_cast<size_t>(rows) * kWidth * 4, true);
    rope = filled(static_cast<size_t>(rows) * 128 * 4, true);
    norms = filled(2 * 128 * 4, false);
    view = {this->counts.at<const StepView::Counts>(),
            nullptr,
            this->positions.at<const int32_t>(),
            this->sequences.at<const int32_t>(),
            this->begins.at<const int32_t>(),
            this->tables.at<const int32_t>(),
            nullptr,
            items.at<const AttentionItem>(),
            first_bad.at<unsigned long long>()};
  }
  HeadNorm norm() const {
    return {norms.at<const float>(), norms.at<const float>(512), rope.at<const float>(), 128, 1e-6f, 0};
  }
  Attention attention(const KvPages& pages) const {
    Attention a{};
    a.qkv = qkv.at<const float>();
    a.qkv_stride = kWidth;
    a.layout = kLayout;
    a.pages = pages;
    a.scratch = scratch;
    a.wide = wide;
    a.quantize = true;
    a.quantized = quantized;
    a.fused = !wide;
    a.norm = norm();
    return a;
  }

  int rows, count;
  bool wide;
  StepView view;
  DeviceMemory items, counts, positions, sequences, begins, tables, first_bad, scratch_memory,
      quantized_memory, qkv, rope, norms;
  AttentionScratch scratch;
  Quantized quantized;
};

/// Products of one row, as those around attention are.
struct Products {
  explicit Products(const Case& c)
      : words(filled(size_t{kLayers} * (kQkvUnits + kOutUnits) * 512, false, ~0u, 0)),
        scales(filled(size_t{kLayers} * (kQkvUnits + kOutUnits) * 64, false, 0x03ff03ffu, 0x20002000u)),
        x(filled(kHidden * 4, true)),
        weights(filled(kHidden * 4, false)),
        y(filled(kHidden * 4, true)),
        c(c) {}

  void before(int layer, int multiprocessors, cudaStream_t stream) const {
    const Preparation work{{x.at<float>(), kHidden},
                           kHidden,
                           {weights.at<const float>(), 1e-6f},
                           0,
                           {},
                           1,
                           {c.quantized},
                           {0, false}};
    prepare_rows(c.view, work, 1, stream);
    const MatrixRun run = matrix(kWidth, static_cast<size_t>(layer) * kQkvUnits);
    multiply_sign({&run, 1, c.quantized, {c.qkv.at<float>(), kWidth}, Epilogue::kStore}, multiprocessors,
                  stream);
  }
  void after(int layer, int multiprocessors, cudaStream_t stream) const {
    const MatrixRun run =
        matrix(kHidden, size_t{kLayers} * kQkvUnits + static_cast<size_t>(layer) * kOutUnits);
    multiply_sign({&run, 1, c.quantized, {y.at<float>(), kHidden}, Epilogue::kAdd}, multiprocessors, stream);
  }

 private:
  static constexpr size_t kQkvUnits = kWidth / 16 * 16, kOutUnits = kHidden / 16 * 16;
  MatrixRun matrix(int64_t rows, size_t unit) const {
    return {DataType::kQ1_0,
            0,
            rows,
            kHidden,
            false,
            {1, static_cast<int32_t>(rows / 16), 16, words.at<const uint4>(unit * 512),
             scales.at<const uint2>(unit * 64)},
            nullptr};
  }

  DeviceMemory words, scales, x, weights, y;
  const Case& c;
};

}  // namespace

int main() {
  int multiprocessors;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "device");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  prepare_attention();
  struct {
    int sequences, rows, context;
  } const cases[] = {{1, 1, 64},    {1, 1, 128}, {1, 1, 512},   {1, 1, 2048}, {1, 1, 4096},
                     {4, 1, 64},    {16, 1, 64}, {16, 1, 512},  {64, 1, 64},  {64, 1, 512},
                     {1, 512, 512}, {8, 64, 64}, {1, 512, 2048}};
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const CudaKvCache kv(
        {kLayers, kLayout.kv_heads, kLayout.head_dim, kBlockTokens, 64 * 512 / kBlockTokens, type});
    for (const auto& [sequences, rows, context] : cases) {
      const Case c(sequences, rows, context, multiprocessors);
      check(cudaDeviceSynchronize(), "filling");
      const auto attend = [&](int layer) {
        const Attention a = c.attention(kv.pages(layer));
        if (c.wide) {
          launch_norm_store(c.view, {c.qkv.at<float>(), kWidth, kLayout}, c.norm(), {a.pages, 0}, c.rows,
                            stream);
        }
        launch_attention(c.view, a, attention_blocks(a, multiprocessors), stream);
      };
      std::printf("%s %3d sequences, %3d rows each, %4d tokens: %4d items %8.2f us\n",
                  type == KvType::kF16 ? "f16" : "q8 ", sequences, rows, context, c.count,
                  seconds_of(stream, kLayers, attend) * 1e6);
      if (sequences * rows > 1) continue;
      const Products products(c);
      check(cudaDeviceSynchronize(), "filling");
      const double without = seconds_of(stream, kLayers, [&](int layer) {
        products.before(layer, multiprocessors, stream);
        products.after(layer, multiprocessors, stream);
      });
      const double with = seconds_of(stream, kLayers, [&](int layer) {
        products.before(layer, multiprocessors, stream);
        attend(layer);
        products.after(layer, multiprocessors, stream);
      });
      std::printf("%63s %8.2f us\n", "between a norm with qkv and attn_output:", (with - without) * 1e6);
    }
  }
  return 0;
}
