#include "niwaki/data_type.h"

#include <string>

#include "niwaki/error.h"

namespace niwaki {

const DataTypeInfo& info(DataType type) {
  static constexpr DataTypeInfo kTypes[] = {
      {"F32", 1, 4},    {"F16", 1, 2},     {"BF16", 1, 2},   {"Q8_0", 32, 34},
      {"Q4_0", 32, 18}, {"Q1_0", 128, 18}, {"Q2_0", 64, 18}, {"Q2_0_G128", 128, 34},
  };
  const auto index = static_cast<uint32_t>(type);
  if (index >= sizeof kTypes / sizeof kTypes[0]) {
    throw Error(ErrorCode::kInvalidArgument, "There is no data type " + std::to_string(index) + ".");
  }
  return kTypes[index];
}

size_t row_bytes(DataType type, int64_t columns) {
  const DataTypeInfo& t = info(type);
  return static_cast<size_t>(columns / t.block) * static_cast<size_t>(t.block_bytes);
}

}  // namespace niwaki
