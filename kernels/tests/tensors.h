#pragma once
// Random tensors as they lie in a file, and what they mean, written down a second time and simply.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/float16.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "cpu/weight_memory.h"
#include "job.h"
#include "niwaki/data_type.h"
#include "random.h"

namespace niwaki::test {

constexpr DataType kAllTypes[] = {DataType::kF32,  DataType::kF16,  DataType::kBF16, DataType::kQ8_0,
                                  DataType::kQ4_0, DataType::kQ1_0, DataType::kQ2_0, DataType::kQ2_0_G128};

struct Tensor {
  std::string name;
  DataType type;
  int64_t rows, columns;
  std::vector<uint8_t> bytes;

  MatrixSource source() const { return {name, type, rows, bytes.data()}; }
  uint8_t* block(int64_t row, int64_t index) {
    return bytes.data() + row * static_cast<int64_t>(row_bytes(type, columns)) +
           index * info(type).block_bytes;
  }
  float weight(int64_t row, int64_t column) const {
    const DataTypeInfo& t = info(type);
    const uint8_t* block = bytes.data() + row * static_cast<int64_t>(row_bytes(type, columns)) +
                           column / t.block * t.block_bytes;
    const int j = static_cast<int>(column % t.block);
    uint16_t half;
    std::memcpy(&half, block, 2);
    const float d = half_to_float(half);
    float value;
    switch (type) {
      case DataType::kF32:
        std::memcpy(&value, block, 4);
        return value;
      case DataType::kF16:
        return d;
      case DataType::kBF16:
        return bfloat16_to_float(half);
      case DataType::kQ8_0:
        return d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
      case DataType::kQ4_0:
        return d * static_cast<float>((j < 16 ? block[2 + j] & 15 : block[2 + j - 16] >> 4) - 8);
      case DataType::kQ1_0:
        return block[2 + j / 8] >> j % 8 & 1 ? d : -d;
      default:
        return d * static_cast<float>((block[2 + j / 4] >> 2 * (j % 4) & 3) - 1);
    }
  }
};

inline Tensor random_tensor(DataType type, int64_t rows, int64_t columns, uint64_t seed,
                            const std::string& name = "blk.0.test.weight") {
  Tensor tensor{name, type, rows, columns,
                std::vector<uint8_t>(static_cast<size_t>(rows) * row_bytes(type, columns))};
  Random random(seed);
  const DataTypeInfo& t = info(type);
  for (size_t i = 0; i < tensor.bytes.size(); i += static_cast<size_t>(t.block_bytes)) {
    uint8_t* block = tensor.bytes.data() + i;
    for (int b = 0; b < t.block_bytes; ++b) block[b] = static_cast<uint8_t>(random.next());
    const float value = 0.03f * random.normal();
    const uint16_t half = type == DataType::kBF16 ? [value] {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      return static_cast<uint16_t>(bits >> 16);
    }() : float_to_half(value);
    if (type == DataType::kF32) {
      std::memcpy(block, &value, 4);
    } else {
      std::memcpy(block, &half, 2);
    }
  }
  return tensor;
}

inline std::vector<float> random_activations(int64_t rows, int64_t columns, uint64_t seed) {
  return Random(seed).normals(static_cast<size_t>(rows * columns));
}

inline std::shared_ptr<const CpuMatrix> pack(ThreadPool& pool, const std::vector<Tensor>& tensors,
                                             int64_t columns, SignOrder order) {
  std::vector<MatrixSource> sources;
  for (const Tensor& tensor : tensors) sources.push_back(tensor.source());
  std::shared_ptr<const CpuMatrix> matrix;
  WeightArena arena;
  run_job(pool, [&] { matrix = CpuMatrix::pack(sources, columns, order, pool, arena); });
  return matrix;
}

/// A matrix packed for every tier.
class Packed {
 public:
  Packed(ThreadPool& pool, const std::vector<Tensor>& tensors, int64_t columns)
      : columns_(pack(pool, tensors, columns, SignOrder::kColumns)),
        quads_(pack(pool, tensors, columns, SignOrder::kQuads)) {}
  const CpuMatrix& of(const Tier& tier) const {
    return tier.linear.sign_order == SignOrder::kColumns ? *columns_ : *quads_;
  }

 private:
  std::shared_ptr<const CpuMatrix> columns_, quads_;
};

}  // namespace niwaki::test
