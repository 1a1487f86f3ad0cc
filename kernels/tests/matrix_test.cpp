#include "niwaki/matrix.h"

#include <functional>
#include <limits>

#include "check.h"
#include "cpu/linear.h"
#include "cpu/matrix.h"
#include "cpu/weight_memory.h"
#include "niwaki/error.h"
#include "tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

constexpr SignOrder kOrders[] = {SignOrder::kColumns, SignOrder::kQuads};

std::string error_of(ErrorCode code, const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code == code);
    return error.what();
  }
  CHECK(!"it throws");
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST(every_row_of_every_type_comes_back_as_it_was) {
  ThreadPool pool(2);
  for (const DataType type : kAllTypes) {
    for (const SignOrder order : kOrders) {
      for (const int64_t rows : {1, 63, 64, 65, 200}) {
        const int64_t columns = info(type).block == 1 ? 77 : info(type).block * 3;
        const Tensor tensor = random_tensor(type, rows, columns, static_cast<uint64_t>(rows));
        const auto matrix = pack(pool, {tensor}, columns, order);
        CHECK(matrix->rows() == rows && matrix->columns() == columns);
        std::vector<float> row(static_cast<size_t>(columns));
        int64_t wrong = 0;
        for (int64_t r = 0; r < rows; ++r) {
          copy_row(*matrix, r, row.data());
          for (int64_t c = 0; c < columns; ++c) {
            const float expected = tensor.weight(r, c);
            wrong += std::memcmp(&expected, &row[static_cast<size_t>(c)], 4) != 0;
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST(rows_of_stacked_tensors_follow_one_another) {
  ThreadPool pool(1);
  const std::vector<Tensor> tensors = {random_tensor(DataType::kQ1_0, 70, 256, 1),
                                       random_tensor(DataType::kQ2_0, 5, 256, 2),
                                       random_tensor(DataType::kF16, 3, 256, 3)};
  const auto matrix = pack(pool, tensors, 256, SignOrder::kQuads);
  CHECK(matrix->rows() == 78);
  std::vector<float> row(256);
  copy_row(*matrix, 69, row.data());
  CHECK(row[200] == tensors[0].weight(69, 200));
  copy_row(*matrix, 70, row.data());
  CHECK(row[200] == tensors[1].weight(0, 200));
  copy_row(*matrix, 77, row.data());
  CHECK(row[200] == tensors[2].weight(2, 200));
}

TEST(blocks_of_gate_and_up_alternate) {
  ThreadPool pool(2);
  struct Case {
    DataType gate, up;
    int64_t more = 0;  // rows of up
    bool alternate = false;
  };
  const Case cases[] = {{DataType::kQ1_0, DataType::kQ1_0, 0, true},
                        {DataType::kQ2_0, DataType::kQ2_0, 0, true},
                        {DataType::kQ2_0_G128, DataType::kQ2_0_G128, 0, true},
                        {DataType::kQ1_0, DataType::kQ1_0, 64},
                        {DataType::kQ1_0, DataType::kQ2_0},
                        {DataType::kF16, DataType::kF16},
                        {DataType::kQ8_0, DataType::kQ8_0}};
  for (const Case& c : cases) {
    for (const SignOrder order : kOrders) {
      for (const int64_t rows : {1, 64, 200}) {
        const std::vector<Tensor> tensors = {random_tensor(c.gate, rows, 384, 1),
                                             random_tensor(c.up, rows + c.more, 384, 2)};
        const auto matrix = pack(pool, tensors, 384, order);
        const CpuMatrix::Part &gate = matrix->parts()[0], &up = matrix->parts()[1];
        CHECK(gate.alternates() == c.alternate && up.alternates() == c.alternate);
        CHECK(gate.first_row == 0 && up.first_row == rows);
        // Wherever the blocks lie, they fill the memory once.
        size_t alone = 0;
        for (const Tensor& tensor : tensors) alone += pack(pool, {tensor}, 384, order)->bytes();
        CHECK(matrix->bytes() >= alone && matrix->bytes() < alone + 64);
        if (c.alternate) {
          const uint8_t* next = gate.data;
          for (int64_t i = 0; i < gate.blocks(); ++i) {
            CHECK(gate.block(i) == next);
            CHECK(up.block(i) == next + gate.block_bytes());
            next += 2 * gate.block_bytes();
          }
          CHECK(next == gate.data + matrix->bytes());
        } else {
          CHECK(up.data >= gate.block(gate.blocks() - 1) && up.data <= gate.block(gate.blocks()) + 63);
        }
        std::vector<float> row(384);
        int64_t wrong = 0;
        for (int64_t r = 0; r < matrix->rows(); ++r) {
          copy_row(*matrix, r, row.data());
          const Tensor& tensor = tensors[r < rows ? 0 : 1];
          for (int64_t i = 0; i < 384; ++i) {
            const float expected = tensor.weight(r < rows ? r : r - rows, i);
            wrong += std::memcmp(&expected, &row[static_cast<size_t>(i)], 4) != 0;
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

TEST(packed_weights_take_the_files_bytes_and_hardly_more) {
  ThreadPool pool(2);
  for (const DataType type : kAllTypes) {
    const SignOrder order = SignOrder::kQuads;
    // As odd a row count as the published vocabulary's: 151,669 = 53 modulo 64.
    const int64_t rows = 64 * 100 + 53, columns = 1024;
    const Tensor tensor = random_tensor(type, rows, columns, 9);
    const double file = static_cast<double>(rows) * static_cast<double>(row_bytes(type, columns));
    CHECK(static_cast<double>(pack(pool, {tensor}, columns, order)->bytes()) < 1.01 * file);
    CHECK(static_cast<double>(pack(pool, {tensor, tensor}, columns, order)->bytes()) < 1.01 * 2 * file);
  }
}

TEST(a_scale_or_weight_that_is_not_finite_is_refused_by_tensor_and_row) {
  ThreadPool pool(2);
  for (const DataType type : kAllTypes) {
    for (const bool infinite : {false, true}) {
      Tensor tensor = random_tensor(type, 150, 256, 4, "blk.7.ffn_up.weight");
      const float value = infinite ? -INFINITY : NAN;
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t half =
          type == DataType::kBF16 ? static_cast<uint16_t>(bits >> 16) : float_to_half(value);
      for (const int64_t row : {149, 131}) {
        type == DataType::kF32 ? std::memcpy(tensor.block(row, 1), &value, 4)
                               : std::memcpy(tensor.block(row, 1), &half, 2);
      }
      const Tensor gate = random_tensor(type, 150, 256, 5, "blk.7.ffn_gate.weight");
      for (const std::vector<Tensor>& tensors : {std::vector<Tensor>{tensor}, {gate, tensor}}) {
        const std::string message =
            error_of(ErrorCode::kNonFinite, [&] { pack(pool, tensors, 256, SignOrder::kColumns); });
        CHECK(contains(message, "blk.7.ffn_up.weight"));
        CHECK(contains(message, "row 131 "));
      }
    }
  }
}

TEST(a_row_length_that_does_not_fit_the_type_is_refused) {
  ThreadPool pool(1);
  WeightArena arena;
  const uint8_t byte = 0;
  const std::vector<MatrixSource> sources = {{"blk.1.attn_k.weight", DataType::kQ1_0, 1, &byte}};
  const std::string message = error_of(ErrorCode::kInvalidArgument, [&] {
    run_job(pool, [&] { CpuMatrix::pack(sources, 192, SignOrder::kColumns, pool, arena); });
  });
  CHECK(contains(message, "blk.1.attn_k.weight"));
  CHECK(contains(message, "192"));
}

TEST(more_memory_than_there_can_be_is_an_error) {
  ThreadPool pool(1);
  WeightArena arena;
  const uint8_t byte = 0;
  const std::vector<MatrixSource> sources = {{"huge", DataType::kF32, int64_t{1} << 44, &byte}};
  error_of(ErrorCode::kOutOfMemory, [&] {
    run_job(pool, [&] { CpuMatrix::pack(sources, 1 << 12, SignOrder::kColumns, pool, arena); });
  });
}

TEST(a_vector_must_be_finite) {
  const std::vector<float> good = {1, -2, 3};
  CHECK(Vector("output_norm.weight", good).values()[1] == -2);
  const std::vector<float> bad = {1, 2, std::numeric_limits<float>::infinity()};
  const std::string message = error_of(ErrorCode::kNonFinite, [&] { Vector("output_norm.weight", bad); });
  CHECK(contains(message, "output_norm.weight") && contains(message, "weight 2 "));
}

TEST_MAIN()
