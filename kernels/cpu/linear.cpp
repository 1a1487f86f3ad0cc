#include "cpu/linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/matrix_part.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

/// Blocks of 64 rows that a thread multiplies at a time: they share the tables of a group in the first-level cache.
constexpr int64_t kRunBlocks = 4;
constexpr int64_t kRunRows = kRunBlocks * kBlockRows;
/// Groups of activations that a thread prepares at a time.
constexpr int64_t kRunGroups = 4;

bool all_finite(const float* x, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

}  // namespace

/// Up to kTileRows rows of the step, made ready for the kernels.
struct Linear::Tile {
  SignTile sign;
  const float* x;  // rows for the float kernels: zero padded to a multiple of 16 columns
  int64_t x_stride;
  float* padded;   // where they are padded, if they must be
};

Linear::Linear(const Tier& tier, const Matrix& matrix, Activation activation, bool accumulate, int64_t max_rows)
    : kernels_(tier.linear),
      matrix_(matrix),
      activation_(activation),
      accumulate_(accumulate),
      groups_((matrix.columns() + kGroupColumns - 1) / kGroupColumns) {
  const auto& parts = matrix.parts();
  if (activation == Activation::kSwiglu && (parts.size() != 2 || parts[0].rows != parts[1].rows)) {
    throw Error(ErrorCode::kInvalidArgument,
                "SwiGLU needs a matrix of two tensors of equal rows, gate and up; this one has " +
                    std::to_string(parts.size()) + " tensors and " + std::to_string(matrix.rows()) + " rows.");
  }
  for (const Matrix::Part& part : parts) {
    if (is_sign_type(part.type)) {
      needs_quanta_ = needs_sign_[sign_layout(part.type).bits] = true;
    } else {
      needs_float_ = true;
      needs_padding_ = matrix.columns() % 16 != 0;
    }
  }
  const auto tile_rows = static_cast<size_t>(std::clamp<int64_t>(max_rows, 1, kTileRows));
  const size_t tile_groups = tile_rows * static_cast<size_t>(groups_);
  const auto reserve = [this](size_t bytes) {
    const size_t offset = scratch_bytes_;
    scratch_bytes_ += (bytes + 63) / 64 * 64;
    return offset;
  };
  if (needs_quanta_) {
    quanta_ = reserve(tile_groups * kGroupColumns * sizeof(int16_t));
    scales_ = reserve(tile_groups * sizeof(float));
  }
  for (int bits = 1; bits <= 2; ++bits) {
    if (!needs_sign_[bits]) continue;
    tables_[bits] = reserve(tile_groups * table_bytes(bits));
    offsets_[bits] = reserve(tile_groups * 2 * sizeof(int32_t));
  }
  if (needs_padding_) padded_ = reserve(tile_rows * static_cast<size_t>(padded_columns(matrix.columns())) * sizeof(float));
}

int64_t Linear::out_columns() const {
  return activation_ == Activation::kSwiglu ? matrix_.rows() / 2 : matrix_.rows();
}

int64_t Linear::run(ThreadPool& pool, int64_t rows, const float* x, int64_t x_stride, float* y, int64_t y_stride,
                    std::byte* scratch) const {
  const auto at = [scratch](size_t offset) { return reinterpret_cast<uint8_t*>(scratch + offset); };
  for (int64_t first = 0; first < rows; first += kTileRows) {
    Tile tile{};
    tile.sign.rows = static_cast<int>(std::min<int64_t>(kTileRows, rows - first));
    tile.sign.columns = matrix_.columns();
    tile.sign.groups = groups_;
    tile.sign.quanta = reinterpret_cast<int16_t*>(at(quanta_));
    tile.sign.scales = reinterpret_cast<float*>(at(scales_));
    for (int bits = 1; bits <= 2; ++bits) {
      tile.sign.tables[bits] = at(tables_[bits]);
      tile.sign.offsets[bits] = reinterpret_cast<int32_t*>(at(offsets_[bits]));
    }
    tile.padded = reinterpret_cast<float*>(at(padded_));
    const int64_t bad_row = prepare(pool, x + first * x_stride, x_stride, tile);
    if (bad_row >= 0) return first + bad_row;
    multiply(pool, tile, y + first * y_stride, y_stride);
  }
  return -1;
}

int64_t Linear::prepare(ThreadPool& pool, const float* x, int64_t x_stride, Tile& tile) const {
  const int64_t columns = matrix_.columns();
  const int64_t padded_stride = padded_columns(columns);
  std::atomic<int64_t> bad_row{INT64_MAX};
  pool.parallel([&](Worker& worker) {
    worker.each(tile.sign.rows * groups_, kRunGroups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / groups_, column = i % groups_ * kGroupColumns;
        const int count = static_cast<int>(std::min<int64_t>(kGroupColumns, columns - column));
        const float* values = x + row * x_stride + column;
        bool finite = true;
        if (needs_quanta_) {
          int16_t* quanta = tile.sign.quanta + i * kGroupColumns;
          finite = kernels_.quantize(values, count, quanta, tile.sign.scales + i);
          for (int bits = 1; finite && bits <= 2; ++bits) {
            if (!needs_sign_[bits]) continue;
            kernels_.build_tables(bits, quanta, tile.sign.tables[bits] + static_cast<size_t>(i) * table_bytes(bits),
                                  tile.sign.offsets[bits] + 2 * i);
          }
        } else {
          finite = all_finite(values, count);
        }
        if (needs_padding_) {
          float* target = tile.padded + row * padded_stride + column;
          std::memcpy(target, values, static_cast<size_t>(count) * sizeof(float));
          for (int64_t c = column + count; c < std::min(column + kGroupColumns, padded_stride); ++c) target[c - column] = 0.0f;
        }
        if (!finite) {
          int64_t lowest = bad_row.load();
          while (row < lowest && !bad_row.compare_exchange_weak(lowest, row)) {
          }
        }
      }
    });
  });
  tile.x = needs_padding_ ? tile.padded : x;
  tile.x_stride = needs_padding_ ? padded_stride : x_stride;
  return bad_row.load() == INT64_MAX ? -1 : bad_row.load();
}

void Linear::multiply(ThreadPool& pool, const Tile& tile, float* y, int64_t y_stride) const {
  const auto& parts = matrix_.parts();
  // The blocks of all parts are one list, so that a matrix costs one barrier; for SwiGLU a block of gate rows and the block
  // of up rows beside it are one item.
  const bool swiglu = activation_ == Activation::kSwiglu;
  const size_t listed = swiglu ? 1 : parts.size();
  int64_t blocks = 0;
  for (size_t p = 0; p < listed; ++p) blocks += parts[p].blocks();
  // Few blocks for many threads: smaller runs.
  const int64_t grain = std::clamp<int64_t>(blocks / (4 * pool.threads()), 1, kRunBlocks);

  pool.parallel([&](Worker& worker) {
    worker.each(blocks, grain, [&](int64_t begin, int64_t end) {
      alignas(64) float sums[kTileRows * kRunRows];
      int64_t part_begin = 0, first_row = 0;  // of the part, in the list and in y
      for (size_t p = 0; p < listed && part_begin < end; ++p) {
        const int64_t part_end = part_begin + parts[p].blocks();
        const int64_t from = std::max(begin, part_begin), to = std::min(end, part_end);
        if (from < to) {
          const int64_t first = (from - part_begin) * kBlockRows;
          const int64_t count = std::min((to - from) * kBlockRows, parts[p].rows - first);
          multiply_part(p, from - part_begin, to - from, tile, sums);
          if (swiglu) {
            alignas(64) float up[kTileRows * kRunRows];
            multiply_part(1, from - part_begin, to - from, tile, up);
            for (int t = 0; t < tile.sign.rows; ++t) {
              float* gate = sums + t * kRunRows;
              kernels_.swiglu(gate, up + t * kRunRows, (count + 15) / 16 * 16, gate);
            }
          }
          write(tile, sums, first_row + first, count, y, y_stride);
        }
        part_begin = part_end;
        first_row += parts[p].rows;
      }
    });
  });
}

/// out[t][r], rows kRunRows apart, for `blocks` blocks of a part; defined up to a multiple of 16 rows.
void Linear::multiply_part(size_t part_index, int64_t first_block, int64_t blocks, const Tile& tile, float* out) const {
  const Matrix::Part& part = matrix_.parts()[part_index];
  if (is_sign_type(part.type)) {
    kernels_.multiply_sign(part.type, part.block(first_block), blocks, tile.sign, out, kRunRows);
    return;
  }
  const int64_t rows = std::min(blocks * kBlockRows, part.rows - first_block * kBlockRows);
  kernels_.multiply_float(part.type, part.block(first_block), part.row_stride, rows, padded_columns(part.columns), tile.x,
                          tile.x_stride, tile.sign.rows, out, kRunRows);
  for (int t = 0; t < tile.sign.rows; ++t) {
    for (int64_t r = rows; r % 16 != 0; ++r) out[t * kRunRows + r] = 0.0f;
  }
}

void Linear::write(const Tile& tile, const float* sums, int64_t first, int64_t count, float* y, int64_t y_stride) const {
  for (int t = 0; t < tile.sign.rows; ++t) {
    const float* from = sums + t * kRunRows;
    float* to = y + t * y_stride + first;
    if (accumulate_) {
      for (int64_t r = 0; r < count; ++r) to[r] += from[r];
    } else {
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    }
  }
}

}  // namespace niwaki
