#pragma once
#include <cstdint>

#include "niwaki/matrix.h"

namespace niwaki {

/// Whether every float of a row, as it lies in a file (its scales, for the types that have them), is finite.
bool row_is_finite(DataType type, const uint8_t* row, int64_t columns);

/// Throws kNonFinite: a row of the tensor is not finite.
[[noreturn]] void refuse_row(const MatrixSource& source, int64_t row);

}  // namespace niwaki
