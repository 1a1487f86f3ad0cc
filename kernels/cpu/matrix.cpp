#include "cpu/matrix.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "cpu/thread_pool.h"
#include "cpu/weight_memory.h"
#include "niwaki/error.h"
#include "src/matrix_check.h"

namespace niwaki {
namespace {

constexpr uint16_t kHalfExponent = 0x7c00;  // all ones: NaN or infinite
constexpr int64_t kPackBlocks = 4;          // that a thread packs in one go
constexpr size_t kPage = 4096;

/// Bytes 8 x 8, transposed: byte i of word j becomes byte j of word i.
inline void transpose(uint64_t (&words)[8]) {
  const auto exchange = [&words](int i, int distance, uint64_t mask) {
    const int shift = 8 * distance;
    const uint64_t change = ((words[i] >> shift) ^ words[i + distance]) & mask;
    words[i] ^= change << shift;
    words[i + distance] ^= change;
  };
  for (int i : {0, 1, 2, 3}) exchange(i, 4, 0x00000000ffffffffu);
  for (int i : {0, 1, 4, 5}) exchange(i, 2, 0x0000ffff0000ffffu);
  for (int i : {0, 2, 4, 6}) exchange(i, 1, 0x00ff00ff00ff00ffu);
}

/// The bytes of one group of 64 rows, in SignOrder::kColumns.
void pack_columns(const SignLayout& layout, const uint8_t* rows, size_t row_size, uint8_t* out) {
  constexpr struct RowAt {  // by position in a byte column
    size_t row[kBlockRows];
    constexpr RowAt() : row{} {
      for (size_t r = 0; r < kBlockRows; ++r) row[sign_position(static_cast<int>(r))] = r;
    }
  } kAt;
  for (int position = 0; position < kBlockRows; position += 8) {
    for (int column = 0; column < layout.byte_columns; column += 8) {
      uint64_t words[8];
      for (int i = 0; i < 8; ++i) std::memcpy(&words[i], rows + kAt.row[position + i] * row_size + column, 8);
      transpose(words);
      for (int i = 0; i < 8; ++i) std::memcpy(out + (column + i) * kBlockRows + position, &words[i], 8);
    }
  }
}

/// The same in SignOrder::kQuads.
void pack_quads(const SignLayout& layout, const uint8_t* rows, size_t row_size, uint8_t* out) {
  for (size_t r = 0; r < kBlockRows; r += 4) {
    for (int column = 0; column < layout.byte_columns; column += 16) {
      uint32_t quads[4][4];
      for (size_t i = 0; i < 4; ++i) std::memcpy(quads[i], rows + (r + i) * row_size + column, 16);
      for (int k = 0; k < 4; ++k) {
        const uint32_t line[4] = {quads[0][k], quads[1][k], quads[2][k], quads[3][k]};
        std::memcpy(out + (column + 4 * k) * kBlockRows + 4 * r, line, 16);
      }
    }
  }
}

/// Packs 64 rows of a sign type. Returns whether all scales are finite. 64 rows are more streams than a
/// processor follows by itself, so what comes next is asked for: the rows of the next block, one after
/// another, and the group after next of `out`.
bool pack_block(const SignLayout& layout, SignOrder order, const uint8_t* rows, size_t row_size,
                uint8_t* out) {
  const size_t group_bytes = 2 + static_cast<size_t>(layout.byte_columns);
  uint32_t bad = 0;
  for (size_t g = 0; g < row_size; g += group_bytes, out += layout.block_bytes()) {
    for (int i = 0; i < layout.block_bytes(); i += 64) {
      __builtin_prefetch(rows + kBlockRows * (row_size + g) + static_cast<size_t>(i));
      __builtin_prefetch(out + 2 * layout.block_bytes() + i, 1);
    }
    order == SignOrder::kColumns ? pack_columns(layout, rows + g + 2, row_size, out)
                                 : pack_quads(layout, rows + g + 2, row_size, out);
    uint8_t* scales = out + layout.byte_columns * kBlockRows;
    for (int r = 0; r < kBlockRows; ++r) {
      uint16_t scale;
      std::memcpy(&scale, rows + static_cast<size_t>(r) * row_size + g, 2);
      std::memcpy(scales + 2 * r, &scale, 2);
      bad |= static_cast<uint32_t>((scale & kHalfExponent) == kHalfExponent);
    }
  }
  return bad == 0;
}

void lower(std::atomic<int64_t>& minimum, int64_t value) {
  int64_t current = minimum.load();
  while (value < current && !minimum.compare_exchange_weak(current, value)) {
  }
}

/// Bytes of the rows of a float type, as they are packed.
size_t row_stride(DataType type, int64_t columns) {
  if (is_sign_type(type)) return 0;
  return row_bytes(type, info(type).block == 1 ? padded_columns(columns) : columns);
}

size_t part_bytes(const CpuMatrix::Part& part) {
  return is_sign_type(part.type) ? static_cast<size_t>(part.blocks()) * part.block_bytes()
                                 : static_cast<size_t>(part.rows) * part.row_stride;
}

/// Whether the blocks of the sources are to alternate: see CpuMatrix::Part.
bool alternate(std::span<const MatrixSource> sources) {
  return sources.size() == 2 && is_sign_type(sources[0].type) && sources[0].type == sources[1].type &&
         sources[0].rows == sources[1].rows;
}

/// Packs block after block, of parts whose blocks alternate those beside each other: a page that the system
/// gives at the first write, filled with zeros, is then written while it is in the caches.
void pack_parts(std::span<const MatrixSource> sources, std::span<const CpuMatrix::Part> parts,
                ThreadPool& pool) {
  std::vector<std::atomic<int64_t>> bad_rows(parts.size());
  for (std::atomic<int64_t>& bad_row : bad_rows) bad_row = INT64_MAX;
  const auto pack = [&](size_t p, int64_t block) {
    const CpuMatrix::Part& part = parts[p];
    const bool sign = is_sign_type(part.type);
    const size_t row_size = row_bytes(part.type, part.columns);
    const int64_t first = block * kBlockRows, count = std::min<int64_t>(kBlockRows, part.rows - first);
    const uint8_t* rows = sources[p].data + static_cast<size_t>(first) * row_size;
    uint8_t* out = part.data + static_cast<size_t>(block) * part.block_stride;
    if (sign) {
      std::vector<uint8_t> padded;
      if (count < kBlockRows) {
        padded.resize(kBlockRows * row_size);
        std::memcpy(padded.data(), rows, static_cast<size_t>(count) * row_size);
      }
      if (pack_block(sign_layout(part.type), part.order, padded.empty() ? rows : padded.data(), row_size,
                     out))
        return;
    }
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* row = rows + static_cast<size_t>(r) * row_size;
      if (!row_is_finite(part.type, row, part.columns)) lower(bad_rows[p], first + r);
      if (!sign) std::memcpy(out + static_cast<size_t>(r) * part.row_stride, row, row_size);
    }
  };
  pool.parallel([&](Worker& worker) {
    worker.each(parts[0].blocks(), kPackBlocks, [&](int64_t begin, int64_t end) {
      for (size_t p = 0; p < parts.size(); ++p) {
        const size_t row_size = row_bytes(parts[p].type, parts[p].columns);
        const size_t last = static_cast<size_t>(std::min(parts[p].rows, end * kBlockRows)) * row_size - 1;
        // The pages of a mapped file must be there before they can be asked for.
        for (size_t i = static_cast<size_t>(begin) * kBlockRows * row_size; i <= last; i += kPage)
          static_cast<void>(*static_cast<const volatile uint8_t*>(sources[p].data + i));
      }
      for (int64_t block = begin; block < end; ++block) {
        for (size_t p = 0; p < parts.size(); ++p) pack(p, block);
      }
    });
  });
  for (size_t p = 0; p < parts.size(); ++p) {
    if (bad_rows[p] != INT64_MAX) refuse_row(sources[p], bad_rows[p]);
  }
}

}  // namespace

size_t CpuMatrix::Part::block_bytes() const {
  if (!is_sign_type(type)) return kBlockRows * row_stride;
  const SignLayout layout = sign_layout(type);
  return static_cast<size_t>(columns / layout.columns * layout.block_bytes());
}

CpuMatrix::CpuMatrix(std::span<const MatrixSource> sources, int64_t columns) : Matrix(sources, columns) {}
CpuMatrix::~CpuMatrix() = default;

std::shared_ptr<const CpuMatrix> CpuMatrix::pack(std::span<const MatrixSource> sources, int64_t columns,
                                                 SignOrder order, ThreadPool& pool, WeightArena& arena) {
  // Packed weights keep the file's byte order inside.
  static_assert(std::endian::native == std::endian::little);
  std::shared_ptr<CpuMatrix> matrix(new CpuMatrix(sources, columns));
  int64_t rows = 0;
  std::vector<size_t> begins;
  size_t bytes = 0;
  for (const MatrixSource& source : sources) {
    Part part{source.name, source.type, order, source.rows, columns, rows, 0, 0, nullptr};
    part.row_stride = row_stride(source.type, columns);
    part.block_stride = part.block_bytes() * (alternate(sources) ? 2 : 1);
    bytes = (bytes + 63) / 64 * 64;
    begins.push_back(part.alternates() ? begins.size() * part.block_bytes() : bytes);
    bytes += part_bytes(part);
    rows += part.rows;
    matrix->parts_.push_back(std::move(part));
  }
  matrix->memory_ = std::make_unique<const WeightMemory>(arena.allocate(bytes));
  for (size_t p = 0; p < sources.size(); ++p) matrix->parts_[p].data = matrix->memory_->data() + begins[p];
  const std::span<const Part> parts = matrix->parts_;
  const size_t together = parts[0].alternates() ? parts.size() : 1;
  for (size_t p = 0; p < parts.size(); p += together)
    pack_parts(sources.subspan(p, together), parts.subspan(p, together), pool);
  return matrix;
}

size_t CpuMatrix::bytes() const {
  return memory_->bytes();
}

const CpuMatrix& cpu_matrix(const Matrix& matrix) {
  const auto* cpu = dynamic_cast<const CpuMatrix*>(&matrix);
  if (cpu == nullptr) {
    throw Error(ErrorCode::kInvalidArgument,
                "the matrix " + matrix.tensors()[0].name + " was loaded on another device");
  }
  return *cpu;
}

}  // namespace niwaki
