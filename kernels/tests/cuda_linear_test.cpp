#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/linear.h"
#include "cuda/linear_kernels.h"
#include "cuda/memory.h"
#include "cuda/rows.h"
#include "tests/check.h"
#include "tests/tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

/// Memory of the GPU with what a step's kernels read, for `rows` rows.
struct Bench {
  explicit Bench(int rows) : counts(sizeof(cuda::StepView::Counts), "counts"), bad(8, "bad") {
    const cuda::StepView::Counts c{rows, rows, 1, 0};
    cuda::check(cudaMemcpy(counts.at<void>(), &c, sizeof c, cudaMemcpyHostToDevice), "counts");
    cuda::check(cudaMemset(bad.at<void>(), 0xff, 8), "bad");
    step.counts = counts.at<const cuda::StepView::Counts>();
    step.first_bad = bad.at<unsigned long long>();
  }
  unsigned long long first_bad() const {
    unsigned long long value;
    cuda::check(cudaMemcpy(&value, bad.at<void>(), 8, cudaMemcpyDeviceToHost), "bad");
    return value;
  }
  cuda::DeviceMemory counts, bad;
  cuda::StepView step{};
};

int launched_rows(int rows) {
  return rows <= cuda::kPlaneRows ? rows : (rows + 15) / 16 * 16;
}

std::vector<std::byte> copy_of(const void* on_gpu, size_t bytes) {
  std::vector<std::byte> copy(bytes);
  cuda::check(cudaMemcpy(copy.data(), on_gpu, bytes, cudaMemcpyDeviceToHost), "a copy");
  return copy;
}

/// A product normed and quantized on the way, from a row of floats, gives what `product` gave; and SwiGLU's
/// results quantized what they are quantized to by themselves.
void row_of_floats(const Bench& bench, const cuda::SignProduct& product, const cuda::FloatRows& x,
                   const cuda::NormWeights& norm, const std::vector<float>& before) {
  const size_t width = before.size();
  const cuda::DeviceMemory out(width * sizeof(float), "y");
  cuda::check(cudaMemcpy(out.at<void>(), before.data(), out.size(), cudaMemcpyHostToDevice), "y");
  cuda::RowProduct row{product.run,      x.data, norm, 0, 0, {}, {out.at<float>(), x.stride},
                       product.epilogue, {},     0};
  cuda::multiply_row(bench.step, row, 4, nullptr);
  cuda::check(cudaStreamSynchronize(nullptr), "multiplying");
  const size_t first = static_cast<size_t>(product.run->first_row) * sizeof(float),
               size = static_cast<size_t>(product.run->rows) * sizeof(float) /
                      (product.epilogue == cuda::Epilogue::kSwiglu ? 2 : 1);
  const auto expected = copy_of(product.out.data, out.size());
  auto found = copy_of(out.at<void>(), out.size());
  CHECK(std::memcmp(found.data() + first, expected.data() + first, size) == 0);
  if (product.epilogue != cuda::Epilogue::kSwiglu || width % cuda::kGroup != 0) return;
  for (const auto layout : {cuda::QuantizedLayout::kBits1, cuda::QuantizedLayout::kBits2}) {
    const cuda::QuantizedBytes bytes(layout, 1, static_cast<int64_t>(width));
    const size_t all = bytes.data + bytes.scales + bytes.sums;
    const auto quantized = [&](const cuda::DeviceMemory& memory) {
      cuda::check(cudaMemset(memory.at<void>(), 0, all), "quantized");
      return cuda::Quantized{layout, 1, memory.at<uint8_t>(), memory.at<float>(bytes.data),
                             memory.at<int32_t>(bytes.data + bytes.scales)};
    };
    const cuda::DeviceMemory apart(all, "quantized"), together(all, "quantized");
    const cuda::Preparation work{product.out, static_cast<int32_t>(width), {},        0, {},
                                 1,           {quantized(apart)},          {0, false}};
    cuda::prepare_rows(bench.step, work, 1, nullptr);
    row.out.data = nullptr;
    row.next = quantized(together);
    cuda::multiply_row(bench.step, row, 4, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "multiplying");
    CHECK(copy_of(apart.at<void>(), all) == copy_of(together.at<void>(), all));
  }
}

/// Tiles of every shape give what `product` gave.
void every_tile(const cuda::SignProduct& product, const std::vector<float>& before, int rows) {
  const size_t bytes = before.size() * sizeof(float), stride = static_cast<size_t>(product.out.stride);
  const size_t first = static_cast<size_t>(product.run->first_row),
               width = static_cast<size_t>(product.run->rows) /
                       (product.epilogue == cuda::Epilogue::kSwiglu ? 2 : 1);
  const auto expected = copy_of(product.out.data, bytes);
  const cuda::DeviceMemory out(static_cast<size_t>(product.rows) * stride * sizeof(float), "y");
  for (int tile = 0; tile < cuda::kTileShapes; ++tile) {
    if (!cuda::tile_fits(tile, product.rows)) continue;
    cuda::check(cudaMemcpy(out.at<void>(), before.data(), bytes, cudaMemcpyHostToDevice), "y");
    cuda::SignProduct same = product;
    same.out.data = out.at<float>();
    cuda::multiply_tiles(same, tile, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "multiplying");
    const auto found = copy_of(out.at<void>(), bytes);
    for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
      const size_t at = (row * stride + first) * sizeof(float);
      CHECK(std::memcmp(found.data() + at, expected.data() + at, width * sizeof(float)) == 0);
    }
  }
}

/// y = W x on the GPU. `y` holds what is there before.
std::vector<float> run(const std::vector<Tensor>& tensors, int64_t columns, const std::vector<float>& x,
                       int rows, cuda::Epilogue epilogue, const std::vector<float>& before,
                       const std::vector<float>& norm_weights = {}) {
  ThreadPool pool(2);
  std::vector<MatrixSource> sources;
  for (const Tensor& tensor : tensors) sources.push_back(tensor.source());
  std::shared_ptr<const cuda::CudaMatrix> matrix;
  run_job(pool, [&] { matrix = cuda::CudaMatrix::pack(sources, columns, pool); });
  const int launched = launched_rows(rows);
  const int64_t width = static_cast<int64_t>(before.size()) / rows;
  Bench bench(rows);
  const auto bytes = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
  const cuda::DeviceMemory in(bytes(launched * columns), "x"), out(bytes(launched * width), "y");
  cuda::check(cudaMemcpy(in.at<void>(), x.data(), bytes(rows * columns), cudaMemcpyHostToDevice), "x");
  cuda::check(cudaMemcpy(out.at<void>(), before.data(), bytes(rows * width), cudaMemcpyHostToDevice), "y");
  const cuda::FloatRows y{out.at<float>(), width}, floats{in.at<float>(), columns};
  const cuda::DeviceMemory weights(bytes(columns), "norm");
  cuda::NormWeights norm{nullptr, 1e-6f};
  if (!norm_weights.empty()) {
    cuda::check(cudaMemcpy(weights.at<void>(), norm_weights.data(), bytes(columns), cudaMemcpyHostToDevice),
                "norm");
    norm.weights = weights.at<const float>();
  }
  for (const cuda::MatrixRun& part : matrix->runs()) {
    if (part.data != nullptr) {
      cuda::multiply_floats(part, floats, launched, y, epilogue, nullptr);
      continue;
    }
    const cuda::QuantizedLayout layout = cuda::quantized_layout(part.sign.bits, launched);
    const cuda::QuantizedBytes size(layout, launched, columns);
    const cuda::DeviceMemory memory(size.data + size.scales + size.sums, "quantized");
    const cuda::Quantized quantized{layout, launched, memory.at<uint8_t>(), memory.at<float>(size.data),
                                    memory.at<int32_t>(size.data + size.scales)};
    cuda::Preparation work{floats, static_cast<int32_t>(columns), norm, 0, {}, 1, {quantized}, {0, false}};
    cuda::prepare_rows(bench.step, work, launched, nullptr);
    const cuda::SignProduct product{&part, launched, quantized, y, epilogue};
    cuda::multiply_sign(product, 4, nullptr);
    cuda::check(cudaStreamSynchronize(nullptr), "multiplying");
    if (launched > cuda::kPlaneRows) every_tile(product, before, rows);
    if (rows == 1 && columns <= cuda::kMostRowFloats) row_of_floats(bench, product, floats, norm, before);
  }
  cuda::check(cudaStreamSynchronize(nullptr), "multiplying");
  CHECK(bench.first_bad() == ~0ull);
  std::vector<float> result(before.size());
  cuda::check(cudaMemcpy(result.data(), out.at<void>(), bytes(rows * width), cudaMemcpyDeviceToHost), "y");
  return result;
}

/// The same on the CPU.
std::vector<float> expect(const std::vector<Tensor>& tensors, int64_t columns, const std::vector<float>& x,
                          int rows, bool add, Activation activation, const std::vector<float>& before) {
  ThreadPool pool(2);
  const auto matrix = pack(pool, tensors, columns, SignOrder::kColumns);
  const Linear linear(choose_tier("portable"), *matrix, activation, add, rows);
  std::vector<std::byte> scratch(linear.scratch_bytes(2) + 64);
  auto* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
  std::vector<float> y = before;
  run_job(pool, [&] {
    linear.run(pool, rows, x.data(), columns, y.data(), static_cast<int64_t>(y.size()) / rows, aligned);
  });
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST(sign_matrices_give_the_bits_of_the_cpu) {
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0}) {
    for (const int64_t columns : {128, 256, 384, 640}) {
      for (const int rows : {1, 2, 4, 5, 8, 9, 16, 31, 64, 128}) {
        const int64_t out = columns == 256 ? 144 : 72;
        const std::vector<Tensor> tensors = {random_tensor(type, out, columns, 7)};
        const std::vector<float> x = random_activations(rows, columns, 3);
        const std::vector<float> before = random_activations(rows, out, 5);
        const auto y = run(tensors, columns, x, rows, cuda::Epilogue::kAdd, before);
        CHECK(same_bits(y, expect(tensors, columns, x, rows, true, Activation::kNone, before)));
      }
    }
  }
}

TEST(groups_of_numbers_about_as_large) {
  // So many large integers are made smaller, so that their sums fit 16 bits.
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0}) {
    for (const int rows : {1, 4, 16}) {
      std::vector<float> x = random_activations(rows, 512, 3);
      for (size_t i = 0; i < x.size(); ++i) {
        if (i / 128 % 2 == 0)
          x[i] = std::copysign(0.9f + 0.1f * std::fabs(std::sin(static_cast<float>(i))), x[i]);
      }
      const std::vector<Tensor> tensors = {random_tensor(type, 48, 512, 7)};
      const std::vector<float> before(static_cast<size_t>(rows * 48));
      const auto y = run(tensors, 512, x, rows, cuda::Epilogue::kStore, before);
      CHECK(same_bits(y, expect(tensors, 512, x, rows, false, Activation::kNone, before)));
    }
  }
}

TEST(half_groups_at_the_end_of_a_row) {
  for (const int rows : {1, 3, 7, 20}) {
    const std::vector<Tensor> tensors = {random_tensor(DataType::kQ2_0, 40, 192, 7)};
    const std::vector<float> x = random_activations(rows, 192, 3), before(static_cast<size_t>(rows * 40));
    const auto y = run(tensors, 192, x, rows, cuda::Epilogue::kStore, before);
    CHECK(same_bits(y, expect(tensors, 192, x, rows, false, Activation::kNone, before)));
  }
}

TEST(groups_of_128_and_float_types) {
  for (const DataType type : kAllTypes) {
    for (const int rows : {1, 3, 6, 17}) {
      const std::vector<Tensor> tensors = {random_tensor(type, 50, 256, 11)};
      const std::vector<float> x = random_activations(rows, 256, 3), before(static_cast<size_t>(rows * 50));
      const auto y = run(tensors, 256, x, rows, cuda::Epilogue::kStore, before);
      CHECK(relative_error(y, expect(tensors, 256, x, rows, false, Activation::kNone, before)) < 1e-6);
      // A row has the same bits alone.
      const std::vector<float> last(x.end() - 256, x.end());
      const auto alone = run(tensors, 256, last, 1, cuda::Epilogue::kStore, std::vector<float>(50));
      CHECK(same_bits(alone, std::vector<float>(y.end() - 50, y.end())));
    }
  }
}

TEST(stacks_and_swiglu) {
  for (const int rows : {1, 4, 8, 40}) {
    const std::vector<float> x = random_activations(rows, 256, 3);
    // q | k | v of several kinds, one of which ends inside a tile.
    const std::vector<Tensor> stack = {
        random_tensor(DataType::kQ1_0, 64, 256, 1, "q"), random_tensor(DataType::kQ1_0, 24, 256, 2, "k"),
        random_tensor(DataType::kQ1_0, 16, 256, 3, "v"), random_tensor(DataType::kQ2_0, 8, 256, 4, "w")};
    const std::vector<float> before(static_cast<size_t>(rows * 112));
    CHECK(same_bits(run(stack, 256, x, rows, cuda::Epilogue::kStore, before),
                    expect(stack, 256, x, rows, false, Activation::kNone, before)));
    for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0}) {
      const std::vector<Tensor> pair = {random_tensor(type, 88, 256, 1, "gate"),
                                        random_tensor(type, 88, 256, 2, "up")};
      const std::vector<float> none(static_cast<size_t>(rows * 88)), both(static_cast<size_t>(rows * 176));
      const auto y = run(pair, 256, x, rows, cuda::Epilogue::kSwiglu, none);
      CHECK(relative_error(y, expect(pair, 256, x, rows, false, Activation::kSwiglu, none)) < 1e-6);
      CHECK(same_bits(run(pair, 256, x, rows, cuda::Epilogue::kStore, both),
                      expect(pair, 256, x, rows, false, Activation::kNone, both)));
    }
  }
}

TEST(long_rows_of_weights) {
  for (const int rows : {1, 4, 7, 16}) {
    const std::vector<Tensor> tensors = {random_tensor(DataType::kQ1_0, 48, 128 * 41, 7)};
    const std::vector<float> x = random_activations(rows, 128 * 41, 3),
                             before(static_cast<size_t>(rows * 48));
    const auto y = run(tensors, 128 * 41, x, rows, cuda::Epilogue::kStore, before);
    CHECK(same_bits(y, expect(tensors, 128 * 41, x, rows, false, Activation::kNone, before)));
  }
}

TEST(many_tiles_go_in_batches) {
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0}) {
    for (const int rows : {1, 3, 8, 32, 64}) {
      const std::vector<Tensor> tensors = {random_tensor(type, 1000, 1280, 7)};
      const std::vector<float> x = random_activations(rows, 1280, 3),
                               before(static_cast<size_t>(rows * 1000));
      const auto y = run(tensors, 1280, x, rows, cuda::Epilogue::kStore, before);
      CHECK(same_bits(y, expect(tensors, 1280, x, rows, false, Activation::kNone, before)));
    }
  }
}

TEST(very_long_rows_of_weights) {
  constexpr int64_t kColumns = 25600;
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0}) {
    for (const int rows : {1, 4, 7, 16}) {
      const std::vector<Tensor> tensors = {random_tensor(type, 24, kColumns, 7)};
      const std::vector<float> x = random_activations(rows, kColumns, 3),
                               before = random_activations(rows, 24, 5);
      const auto y = run(tensors, kColumns, x, rows, cuda::Epilogue::kAdd, before);
      CHECK(same_bits(y, expect(tensors, kColumns, x, rows, true, Activation::kNone, before)));
    }
  }
}

TEST(norms_before_products) {
  for (const int64_t columns : {256, 1280}) {
    const std::vector<float> x = random_activations(20, columns, 3),
                             weights = random_activations(1, columns, 4);
    std::vector<float> normed = x;
    for (int64_t row = 0; row < 20; ++row) {
      double squares = 0;
      for (int64_t c = 0; c < columns; ++c) squares += std::pow(x[static_cast<size_t>(row * columns + c)], 2);
      for (int64_t c = 0; c < columns; ++c) {
        float& value = normed[static_cast<size_t>(row * columns + c)];
        value = static_cast<float>(value / std::sqrt(squares / static_cast<double>(columns) + 1e-6) *
                                   weights[static_cast<size_t>(c)]);
      }
    }
    for (const bool swiglu : {false, true}) {
      const std::vector<Tensor> tensors = {random_tensor(DataType::kQ1_0, 384, columns, 7, "gate"),
                                           random_tensor(DataType::kQ1_0, 384, columns, 8, "up")};
      const int64_t width = swiglu ? 384 : 768;
      const auto epilogue = swiglu ? cuda::Epilogue::kSwiglu : cuda::Epilogue::kStore;
      const std::vector<float> before(static_cast<size_t>(20 * width));
      const auto all = run(tensors, columns, x, 20, epilogue, before, weights);
      CHECK(relative_error(all, expect(tensors, columns, normed, 20, false,
                                       swiglu ? Activation::kSwiglu : Activation::kNone, before)) < 2e-3);
      for (const int rows : {1, 3, 7}) {
        const auto few = run(tensors, columns, x, rows, epilogue,
                             std::vector<float>(static_cast<size_t>(rows * width)), weights);
        CHECK(same_bits(few, {all.begin(), all.begin() + rows * width}));
      }
    }
  }
}

TEST(values_that_are_not_finite_are_reported) {
  Bench bench(3);
  std::vector<float> x = random_activations(3, 256, 3);
  x[300] = NAN;
  const cuda::DeviceMemory in(x.size() * sizeof(float), "x"), out(x.size() * sizeof(float), "y");
  cuda::check(cudaMemcpy(in.at<void>(), x.data(), in.size(), cudaMemcpyHostToDevice), "x");
  const cuda::QuantizedBytes size(cuda::QuantizedLayout::kBits1, 3, 256);
  const cuda::DeviceMemory memory(size.data + size.scales + size.sums, "quantized");
  const cuda::Quantized quantized{cuda::QuantizedLayout::kBits1, 3, memory.at<uint8_t>(),
                                  memory.at<float>(size.data), memory.at<int32_t>(size.data + size.scales)};
  cuda::Preparation work{{in.at<float>(), 256}, 256, {}, 0, {}, 1, {quantized}, {9, false}};
  cuda::prepare_rows(bench.step, work, 3, nullptr);
  cuda::check(cudaStreamSynchronize(nullptr), "preparing");
  CHECK(bench.first_bad() == (9ull << 32 | 1));
}

TEST_MAIN()
