#include <atomic>
#include <cstring>

#include "cpu/thread_pool.h"
#include "cuda/matrix.h"
#include "niwaki/error.h"
#include "src/matrix_check.h"

namespace niwaki::cuda {
namespace {

constexpr int64_t kTileRows = 16;

bool is_sign(DataType type) {
  return type == DataType::kQ1_0 || type == DataType::kQ2_0 || type == DataType::kQ2_0_G128;
}

uint32_t word_at(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

/// One slice of a row, as it lies in a file.
struct Slice {
  uint16_t scale = 0;
  uint32_t words[4]{};
};

Slice read_slice(DataType type, const uint8_t* row, int64_t index) {
  Slice slice;
  const uint8_t* block = row + (type == DataType::kQ2_0_G128 ? index / 2 * 34 : index * 18);
  std::memcpy(&slice.scale, block, 2);
  const uint8_t* codes = block + 2;
  if (type == DataType::kQ2_0_G128) codes += index % 2 * 16;
  for (int t = 0; t < 4; ++t) {
    // Of Q1_0, byte b has columns 8 b .. 8 b + 7, and lanes 0..7, 8..15, .. of word t have the columns of
    // group_column().
    slice.words[t] = type == DataType::kQ1_0 ? static_cast<uint32_t>(codes[2 * t]) |
                                                   static_cast<uint32_t>(codes[8 + 2 * t]) << 8 |
                                                   static_cast<uint32_t>(codes[2 * t + 1]) << 16 |
                                                   static_cast<uint32_t>(codes[8 + 2 * t + 1]) << 24
                                             : word_at(codes + 4 * t);
  }
  return slice;
}

void lower(std::atomic<int64_t>& minimum, int64_t value) {
  int64_t current = minimum.load();
  while (value < current && !minimum.compare_exchange_weak(current, value)) {
  }
}

void upload(const DeviceMemory& to, const void* from, size_t bytes) {
  check(cudaMemcpy(to.at<void>(), from, bytes, cudaMemcpyHostToDevice), "uploading weights");
}

}  // namespace

std::shared_ptr<const CudaMatrix> CudaMatrix::pack(std::span<const MatrixSource> sources, int64_t columns,
                                                   ThreadPool& pool) {
  std::shared_ptr<CudaMatrix> matrix(new CudaMatrix(sources, columns));
  if (sources.size() == 2 && is_sign(sources[0].type) && sources[0].type == sources[1].type &&
      sources[0].rows == sources[1].rows && sources[0].rows % 8 == 0) {
    matrix->pack_sign(sources, 0, true, pool);
    return matrix;
  }
  int64_t row = 0;
  for (size_t i = 0; i < sources.size();) {
    size_t end = i + 1;
    int64_t rows = sources[i].rows;
    if (is_sign(sources[i].type)) {
      while (end < sources.size() && sources[end].type == sources[i].type && rows % kTileRows == 0)
        rows += sources[end++].rows;
      matrix->pack_sign(sources.subspan(i, end - i), row, false, pool);
    } else {
      matrix->upload_floats(sources[i], row, pool);
    }
    row += rows;
    i = end;
  }
  return matrix;
}

void CudaMatrix::pack_sign(std::span<const MatrixSource> sources, int64_t first_row, bool interleaved,
                           ThreadPool& pool) {
  const DataType type = sources[0].type;
  const int bits = type == DataType::kQ1_0 ? 1 : 2;
  const int64_t slices = columns() / (bits == 1 ? 128 : 64), units = (slices + 1) / 2;
  int64_t rows = 0;
  for (const MatrixSource& source : sources) rows += source.rows;
  const int64_t tiles = (rows + 8 * kTileRows - 1) / (8 * kTileRows) * 8;  // wgmma takes them by eight
  const size_t size = row_bytes(type, columns());

  struct Place {
    size_t source;
    int64_t row;
  };
  const auto place = [&](int64_t row) -> Place {  // of a row of the tiles
    if (interleaved) return {static_cast<size_t>(row / 8 % 2), row / 16 * 8 + row % 8};
    size_t source = 0;
    while (source < sources.size() && row >= sources[source].rows) row -= sources[source++].rows;
    return {source, row};
  };

  SignWeights sign{bits, static_cast<int32_t>(tiles), static_cast<int32_t>(units), nullptr, nullptr};
  std::vector<uint32_t> words(static_cast<size_t>(tiles * units) * 128);
  std::vector<uint16_t> scales(static_cast<size_t>(tiles * units) * 32);
  std::vector<std::atomic<int64_t>> bad(sources.size());
  for (auto& row : bad) row = INT64_MAX;
  pool.parallel([&](Worker& worker) {
    worker.each((rows + kTileRows - 1) / kTileRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kTileRows; row < std::min(rows, end * kTileRows); ++row) {
        const Place from = place(row);
        const uint8_t* data = sources[from.source].data + static_cast<size_t>(from.row) * size;
        if (!row_is_finite(type, data, columns())) lower(bad[from.source], from.row);
        const int64_t in_tile = row % kTileRows;
        for (int64_t s = 0; s < slices; ++s) {
          const Slice slice = read_slice(type, data, s);
          const size_t unit = sign.unit_index(row / kTileRows, s / 2);
          const auto part = static_cast<size_t>(s % 2 * 2 + in_tile / 8);
          for (size_t t = 0; t < 4; ++t)
            words[unit * 128 + (static_cast<size_t>(in_tile % 8) * 4 + t) * 4 + part] = slice.words[t];
          scales[unit * 32 + static_cast<size_t>(in_tile % 8) * 4 + part] = slice.scale;
        }
      }
    });
  });
  for (size_t i = 0; i < sources.size(); ++i) {
    if (bad[i] != INT64_MAX) refuse_row(sources[i], bad[i]);
  }
  const size_t word_bytes = words.size() * sizeof words[0], scale_bytes = scales.size() * sizeof scales[0];
  const DeviceMemory& on_gpu =
      memory_.emplace_back(word_bytes + scale_bytes, "the weights of " + sources[0].name);
  check(cudaMemcpy(on_gpu.at<void>(), words.data(), word_bytes, cudaMemcpyHostToDevice), "uploading weights");
  check(cudaMemcpy(on_gpu.at<std::byte>(word_bytes), scales.data(), scale_bytes, cudaMemcpyHostToDevice),
        "uploading weights");
  bytes_ += on_gpu.size();
  sign.words = on_gpu.at<uint4>();
  sign.scales = on_gpu.at<uint2>(word_bytes);
  runs_.push_back({type, first_row, rows, columns(), interleaved, sign, nullptr});
}

void CudaMatrix::upload_floats(const MatrixSource& source, int64_t first_row, ThreadPool& pool) {
  const size_t size = row_bytes(source.type, columns());
  std::atomic<int64_t> bad = INT64_MAX;
  pool.parallel([&](Worker& worker) {
    worker.each(source.rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (!row_is_finite(source.type, source.data + static_cast<size_t>(row) * size, columns()))
          lower(bad, row);
      }
    });
  });
  if (bad != INT64_MAX) refuse_row(source, bad);
  const DeviceMemory& on_gpu =
      memory_.emplace_back(static_cast<size_t>(source.rows) * size, "the weights of " + source.name);
  upload(on_gpu, source.data, on_gpu.size());
  bytes_ += on_gpu.size();
  runs_.push_back({source.type, first_row, source.rows, columns(), false, {}, on_gpu.at<const uint8_t>()});
}

const CudaMatrix& cuda_matrix(const Matrix& matrix) {
  const auto* found = dynamic_cast<const CudaMatrix*>(&matrix);
  if (found == nullptr) {
    throw Error(ErrorCode::kInvalidArgument,
                "the matrix " + matrix.tensors()[0].name + " was loaded on another device");
  }
  return *found;
}

}  // namespace niwaki::cuda
