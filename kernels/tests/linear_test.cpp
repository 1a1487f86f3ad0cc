#include "cpu/linear.h"

#include <cstdlib>
#include <utility>

#include "check.h"
#include "cpu/row_kernels.h"
#include "niwaki/error.h"
#include "tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

/// Scratch that is aligned and ends where it says, so that the sanitizers see what goes beyond.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 64) / 64 * 64))) {
    std::memset(data_, 0xff, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
};

std::vector<float> run(ThreadPool& pool, const Tier& tier, const Packed& packed, Activation activation,
                       int64_t rows, const std::vector<float>& x, bool accumulate = false) {
  const CpuMatrix& matrix = packed.of(tier);
  const Linear linear(tier, matrix, activation, accumulate, rows);
  const Scratch scratch(linear.scratch_bytes(pool.threads()));
  std::vector<float> y(static_cast<size_t>(rows * linear.out_columns()), accumulate ? 2.5f : NAN);
  run_job(pool, [&] {
    const int64_t bad =
        linear.run(pool, rows, x.data(), matrix.columns(), y.data(), linear.out_columns(), scratch.data());
    CHECK(bad == -1);
  });
  return y;
}

bool same_bits(const float* a, const float* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && same_bits(a.data(), b.data(), a.size());
}

/// y = W x in double.
std::vector<double> reference(const std::vector<Tensor>& tensors, int64_t rows, const std::vector<float>& x) {
  int64_t width = 0;
  for (const Tensor& tensor : tensors) width += tensor.rows;
  std::vector<double> y(static_cast<size_t>(rows * width));
  int64_t first = 0;
  for (const Tensor& tensor : tensors) {
    std::vector<float> weights(static_cast<size_t>(tensor.columns));
    for (int64_t r = 0; r < tensor.rows; ++r) {
      for (int64_t c = 0; c < tensor.columns; ++c) weights[static_cast<size_t>(c)] = tensor.weight(r, c);
      for (int64_t t = 0; t < rows; ++t) {
        double sum = 0;
        for (int64_t c = 0; c < tensor.columns; ++c) {
          sum += static_cast<double>(weights[static_cast<size_t>(c)]) *
                 static_cast<double>(x[static_cast<size_t>(t * tensor.columns + c)]);
        }
        y[static_cast<size_t>(t * width + first + r)] = sum;
      }
    }
    first += tensor.rows;
  }
  return y;
}

double relative_error(const std::vector<float>& y, const std::vector<double>& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    error += (y[i] - expected[i]) * (y[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(error / norm);
}

double tolerance(DataType type) {
  return is_sign_type(type) ? 2.5e-3 : 1e-6;
}

std::vector<int64_t> odd_columns(DataType type) {
  const int64_t block = info(type).block;
  return block == 1 ? std::vector<int64_t>{1, 15, 131, 400}
                    : std::vector<int64_t>{block, 3 * block, 5 * block};
}

}  // namespace

TEST(every_type_and_shape_agrees_with_double_in_every_tier_to_the_same_bits) {
  ThreadPool pool(2);
  for (const DataType type : kAllTypes) {
    for (const int64_t out : {1, 63, 64, 65, 1003}) {
      for (const int64_t columns : odd_columns(type)) {
        const std::vector<Tensor> tensors = {
            random_tensor(type, out, columns, static_cast<uint64_t>(out + columns))};
        const Packed matrix(pool, tensors, columns);
        for (const int64_t rows : {1, 2, 3, 11, 17, 32, 40}) {
          if (out > 100 && rows > 11) continue;  // the reference is slow
          const auto x = random_activations(rows, columns, static_cast<uint64_t>(rows));
          const auto tiers = available_tiers();
          const auto y = run(pool, *tiers.back(), matrix, Activation::kNone, rows, x);
          // A single output can cancel to almost nothing; its error is then relative to nothing.
          if (out * rows > 60) CHECK(relative_error(y, reference(tensors, rows, x)) < tolerance(type));
          for (const Tier* tier : tiers)
            CHECK(same_bits(run(pool, *tier, matrix, Activation::kNone, rows, x), y));
        }
      }
    }
  }
}

TEST(a_row_has_the_same_bits_in_steps_of_any_size) {
  ThreadPool two(2), many(6);    // whose threads build tables for themselves, or share them
  constexpr int64_t kRows = 66;  // two full tiles of any tier, and more
  for (const DataType type : kAllTypes) {
    const int64_t columns = info(type).block == 1 ? 203 : 2432;  // 19 groups
    const int64_t out = 203;
    const Packed matrix(two, {random_tensor(type, out, columns, 7)}, columns);
    const auto x = random_activations(kRows, columns, 8);
    for (const Tier* tier : available_tiers()) {
      const auto whole = run(two, *tier, matrix, Activation::kNone, kRows, x);
      for (int64_t rows = 1; rows <= kRows; ++rows) {
        // Rows at the end of x, so that a row's place in the tile changes too.
        const std::vector<float> tail(x.end() - rows * columns, x.end());
        for (ThreadPool* pool : {&two, &many}) {
          if (pool == &many && rows > 6) continue;
          const auto y = run(*pool, *tier, matrix, Activation::kNone, rows, tail);
          CHECK(same_bits(y.data(), whole.data() + (kRows - rows) * out, static_cast<size_t>(rows * out)));
        }
      }
    }
  }
}

TEST(runs_of_many_blocks_agree) {
  ThreadPool pool(1);
  constexpr int64_t kColumns = 512;
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0, DataType::kQ2_0_G128}) {
    const int64_t out = 64 * 67 + 5;  // four full runs of blocks, and a short one
    const Packed matrix(pool, {random_tensor(type, out, kColumns, 1)}, kColumns);
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 16, 24, 31, 32, 64}) {
      const auto x = random_activations(rows, kColumns, 2);
      const auto y = run(pool, *available_tiers().back(), matrix, Activation::kNone, rows, x);
      for (const Tier* tier : available_tiers())
        CHECK(same_bits(run(pool, *tier, matrix, Activation::kNone, rows, x), y));
    }
  }
}

TEST(tiles_that_go_together_agree) {
  ThreadPool one(1), two(2), three(3);
  constexpr int64_t kRows = 1100, kPiece = 11;  // more than one phase takes; a piece is less than a tile
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0_G128, DataType::kF16}) {
    // More than a run of blocks, the last one short; odd columns are padded.
    const int64_t out = 64 * 17 + 5, columns = type == DataType::kF16 ? 75 : 256;
    const Packed matrix(two, {random_tensor(type, out, columns, 9)}, columns);
    const auto x = random_activations(kRows, columns, 10);
    std::vector<float> expected;
    for (int64_t row = 0; row < kRows; row += kPiece) {
      const std::vector<float> piece(x.begin() + row * columns, x.begin() + (row + kPiece) * columns);
      const auto y = run(two, *available_tiers().back(), matrix, Activation::kNone, kPiece, piece);
      expected.insert(expected.end(), y.begin(), y.end());
    }
    for (const Tier* tier : available_tiers()) {
      for (ThreadPool* pool : {&one, &two, &three}) {
        for (const int64_t rows : {64, 96, 101, 130, 512, 1100}) {
          if (rows > 130 && (pool != &two || tier == available_tiers().back())) continue;
          const auto y = run(*pool, *tier, matrix, Activation::kNone, rows, x);
          CHECK(same_bits(y.data(), expected.data(), static_cast<size_t>(rows * out)));
        }
      }
    }
  }
}

TEST(threads_change_nothing) {
  ThreadPool one(1), two(2), three(3);
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0, DataType::kQ8_0}) {
    const Packed matrix(three, {random_tensor(type, 1003, 512, 1)}, 512);
    for (const int64_t rows : {1, 5, 33}) {
      const auto x = random_activations(rows, 512, 2);
      const Tier& tier = *available_tiers().front();
      const auto y = run(one, tier, matrix, Activation::kNone, rows, x);
      CHECK(same_bits(run(two, tier, matrix, Activation::kNone, rows, x), y));
      CHECK(same_bits(run(three, tier, matrix, Activation::kNone, rows, x), y));
    }
  }
}

TEST(tensors_of_different_types_are_one_matrix) {
  ThreadPool pool(2);
  std::vector<Tensor> tensors;
  for (const DataType type : kAllTypes)
    tensors.push_back(random_tensor(type, 70 + 3 * static_cast<int>(type), 256, 11));
  const Packed matrix(pool, tensors, 256);
  const auto x = random_activations(19, 256, 3);
  const auto y = run(pool, *available_tiers().back(), matrix, Activation::kNone, 19, x);
  CHECK(relative_error(y, reference(tensors, 19, x)) < 2.5e-3);
  for (const Tier* tier : available_tiers())
    CHECK(same_bits(run(pool, *tier, matrix, Activation::kNone, 19, x), y));
  // Each tensor alone gives its columns of the whole.
  int64_t first = 0;
  const int64_t rows = static_cast<int64_t>(y.size()) / 19;
  for (const Tensor& tensor : tensors) {
    const auto alone =
        run(pool, *available_tiers().front(), Packed(pool, {tensor}, 256), Activation::kNone, 19, x);
    for (int64_t t = 0; t < 19; ++t) {
      CHECK(same_bits(alone.data() + t * tensor.rows, y.data() + t * rows + first,
                      static_cast<size_t>(tensor.rows)));
    }
    first += tensor.rows;
  }
}

TEST(accumulate_adds_to_what_is_there) {
  ThreadPool pool(2);
  for (const size_t count : {1, 2}) {
    const Packed matrix(pool, std::vector<Tensor>(count, random_tensor(DataType::kQ1_0, 131, 256, 1)), 256);
    const auto x = random_activations(3, 256, 2);
    const auto y = run(pool, *available_tiers().front(), matrix, Activation::kNone, 3, x);
    const auto sum = run(pool, *available_tiers().front(), matrix, Activation::kNone, 3, x, true);
    for (size_t i = 0; i < y.size(); ++i) CHECK(sum[i] == 2.5f + y[i]);
  }
}

TEST(swiglu_pairs_gate_and_up_rows) {
  ThreadPool one(1), two(2), three(3);
  constexpr int64_t kRows = 40, kColumns = 128;
  const Tier& portable = *available_tiers().back();
  const std::pair<DataType, DataType> kPairs[] = {
      {DataType::kQ1_0, DataType::kQ1_0}, {DataType::kQ2_0, DataType::kQ2_0},
      {DataType::kQ1_0, DataType::kQ2_0}, {DataType::kQ2_0_G128, DataType::kQ2_0_G128},
      {DataType::kF16, DataType::kF16},   {DataType::kQ8_0, DataType::kQ1_0}};
  for (const auto& [gate_type, up_type] : kPairs) {
    for (const int64_t half : {1, 64, 77, 128, 200, 64 * 39 + 5}) {
      const std::vector<Tensor> tensors = {random_tensor(gate_type, half, kColumns, 5),
                                           random_tensor(up_type, half, kColumns, 6)};
      const Packed matrix(two, tensors, kColumns);
      const auto x = random_activations(kRows, kColumns, 7);
      // Each alone.
      const auto gate = run(one, portable, Packed(one, {tensors[0]}, kColumns), Activation::kNone, kRows, x);
      const auto up = run(one, portable, Packed(one, {tensors[1]}, kColumns), Activation::kNone, kRows, x);
      std::vector<float> stacked, expected;
      double worst = 0;
      for (int64_t t = 0; t < kRows; ++t) {
        const auto row_of = [&](const std::vector<float>& y) {
          return std::vector<float>(y.begin() + t * half, y.begin() + (t + 1) * half);
        };
        std::vector<float> g = row_of(gate), u = row_of(up);
        stacked.insert(stacked.end(), g.begin(), g.end());
        stacked.insert(stacked.end(), u.begin(), u.end());
        const size_t padded = static_cast<size_t>(half + 15) / 16 * 16;
        g.resize(padded), u.resize(padded);
        std::vector<float> y(padded);
        portable.linear.swiglu(g.data(), u.data(), static_cast<int64_t>(padded), y.data());
        expected.insert(expected.end(), y.begin(), y.begin() + half);
        for (size_t r = 0; r < static_cast<size_t>(half); ++r) {
          const double exact = g[r] / (1 + std::exp(-static_cast<double>(g[r]))) * u[r];
          worst = std::max(worst, std::abs(y[r] - exact) / (std::abs(exact) + 1e-30));
        }
      }
      CHECK(worst < 1e-6);
      for (const Tier* tier : available_tiers()) {
        for (ThreadPool* pool : {&one, &two, &three}) {
          for (int64_t rows = 1; rows <= kRows; rows += rows < 3 || half == 200 ? 1 : 14) {
            const std::vector<float> tail(x.end() - rows * kColumns, x.end());
            const auto agrees = [&](Activation activation, const std::vector<float>& whole) {
              const auto y = run(*pool, *tier, matrix, activation, rows, tail);
              return same_bits(y, {whole.end() - static_cast<int64_t>(y.size()), whole.end()});
            };
            CHECK(agrees(Activation::kSwiglu, expected));
            CHECK(agrees(Activation::kNone, stacked));
          }
        }
      }
    }
  }
}

TEST(a_matrix_packed_for_another_tier_is_refused) {
  ThreadPool pool(1);
  for (const Tier* tier : available_tiers()) {
    for (const SignOrder order : {SignOrder::kColumns, SignOrder::kQuads}) {
      const auto matrix = pack(pool, {random_tensor(DataType::kQ1_0, 3, 128, 1)}, 128, order);
      bool thrown = false;
      try {
        const Linear linear(*tier, *matrix, Activation::kNone, false, 1);
      } catch (const Error& error) {
        thrown = error.code == ErrorCode::kInvalidArgument;
      }
      CHECK(thrown == (order != tier->linear.sign_order));
    }
  }
}

TEST(swiglu_of_unequal_halves_is_refused) {
  ThreadPool pool(1);
  const Packed matrix(
      pool, {random_tensor(DataType::kQ1_0, 3, 128, 1), random_tensor(DataType::kQ1_0, 5, 128, 1)}, 128);
  bool thrown = false;
  try {
    const Linear linear(*available_tiers().front(), matrix.of(*available_tiers().front()),
                        Activation::kSwiglu, false, 1);
  } catch (const Error& error) {
    thrown = error.code == ErrorCode::kInvalidArgument;
  }
  CHECK(thrown);
}

TEST(the_lowest_row_that_is_not_finite_is_named) {
  ThreadPool pool(2);
  for (const DataType type : kAllTypes) {
    constexpr int64_t kOut = 512, kColumns = 384;
    const Packed matrix(pool, {random_tensor(type, kOut, kColumns, 1)}, kColumns);
    for (const Tier* tier : available_tiers()) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        for (const int64_t row : {0, 6, 21, 70}) {
          const int64_t rows = row < 24 ? 24 : 72, last = rows - 2;
          auto x = random_activations(rows, kColumns, 1);
          x[static_cast<size_t>(row * kColumns + kColumns - 1)] = bad;
          x[static_cast<size_t>(last * kColumns)] = bad;
          const Linear linear(*tier, matrix.of(*tier), Activation::kNone, false, rows);
          const Scratch scratch(linear.scratch_bytes(pool.threads()));
          std::vector<float> y(static_cast<size_t>(rows * kOut));
          run_job(pool, [&] {
            CHECK(linear.run(pool, rows, x.data(), kColumns, y.data(), kOut, scratch.data()) == row);
          });
        }
      }
    }
  }
}

TEST(rows_are_normed_on_the_way_to_the_same_bits) {
  constexpr int64_t kColumns = 2432, kOut = 203, kRows = Linear::kFewRows;  // 19 groups
  ThreadPool one(1), three(3);
  const std::vector<float> weight = random_activations(1, kColumns, 1);
  for (const DataType type : kAllTypes) {
    const Packed matrix(three, {random_tensor(type, kOut, kColumns, 2)}, kColumns);
    auto x = random_activations(kRows, kColumns, 3);
    for (const Tier* tier : available_tiers()) {
      const Linear linear(*tier, matrix.of(*tier), Activation::kNone, false, 40);
      CHECK(linear.takes_norm() == is_sign_type(type));
      if (!linear.takes_norm()) continue;
      const RowNorm norm{weight.data(), 1e-6f};
      std::vector<float> normed(x.size());
      for (int64_t row = 0; row < kRows; ++row) {
        tier->rows.rms_norm(&x[static_cast<size_t>(row * kColumns)], norm.weight, norm.eps, kColumns,
                            &normed[static_cast<size_t>(row * kColumns)]);
      }
      const auto expected = run(one, *tier, matrix, Activation::kNone, kRows, normed);
      for (ThreadPool* pool : {&one, &three}) {
        const Scratch scratch(linear.scratch_bytes(pool->threads()));
        for (int64_t rows = 1; rows <= kRows; ++rows) {
          std::vector<float> y(static_cast<size_t>(rows * kOut), NAN);
          const auto run_rows = [&] {
            return linear.run(*pool, rows, x.data(), kColumns, y.data(), kOut, scratch.data(), nullptr,
                              &norm);
          };
          run_job(*pool, [&] { CHECK(run_rows() == -1); });
          CHECK(same_bits(y.data(), expected.data(), y.size()));
          // Finite, but not its sum of squares.
          const size_t last = static_cast<size_t>(rows * kColumns) - 1;
          const float kept = std::exchange(x[last], 1e30f);
          run_job(*pool, [&] { CHECK(run_rows() == rows - 1); });
          x[last] = kept;
        }
      }
    }
  }
}

TEST(sums_at_the_edge_of_sixteen_bits_are_exact) {
  ThreadPool pool(1);
  // All activations alike are the largest sums there are; a weight of +-d for all of them, or of +2 d.
  for (const DataType type : {DataType::kQ1_0, DataType::kQ2_0, DataType::kQ2_0_G128}) {
    for (const int pattern : {0x00, 0x55, 0xaa, 0xff}) {
      // Of as many blocks as lanes need.
      constexpr int64_t kOut = 64 * 32;
      Tensor tensor = random_tensor(type, kOut, 256, 1);
      for (int64_t r = 0; r < kOut; ++r) {
        for (int64_t b = 0; b < 256 / info(type).block; ++b) {
          const uint16_t one = float_to_half(1.0f);
          std::memcpy(tensor.block(r, b), &one, 2);
          std::memset(tensor.block(r, b) + 2, pattern, static_cast<size_t>(info(type).block_bytes - 2));
        }
      }
      const Packed tall(pool, {tensor}, 256);
      Tensor block = tensor;
      block.rows = 64;
      const Packed matrix(pool, {block}, 256);
      for (const float sign : {1.0f, -1.0f}) {
        for (const int spread :
             {1, 2, 4}) {  // every spread-th column, so that the maximum and not the sum decides
          std::vector<float> x(256);
          for (size_t i = 0; i < x.size(); i += static_cast<size_t>(spread))
            x[i] = sign * (i % 3 == 0 ? -1.0f : 1.0f);
          float expected = 0;
          for (size_t g = 0; g < 256; g += kGroupColumns) {
            int16_t quanta[kGroupColumns];
            float scale;
            CHECK(available_tiers().back()->linear.quantize(x.data() + g, kGroupColumns, quanta, &scale));
            const size_t share = static_cast<size_t>(sign_layout(type).columns);  // columns of a weight scale
            for (size_t first = 0; first < kGroupColumns; first += share) {
              int64_t sum = 0;
              for (size_t c = first; c < first + share; ++c) {
                sum += static_cast<int64_t>(tensor.weight(0, static_cast<int64_t>(g + c))) * quanta[c];
              }
              expected = std::fma(static_cast<float>(sum), scale, expected);
            }
          }
          // Every kernel: one row, few, some, many.
          for (const int64_t rows : {1, 2, 5, 16, 32}) {
            std::vector<float> all;
            for (int64_t t = 0; t < rows; ++t) all.insert(all.end(), x.begin(), x.end());
            for (const Tier* tier : available_tiers()) {
              const bool lanes = rows == 32 && spread == 1 && tier != available_tiers().back();
              for (const float y : run(pool, *tier, lanes ? tall : matrix, Activation::kNone, rows, all))
                CHECK(y == expected);
            }
          }
        }
      }
    }
  }
}

TEST_MAIN()
