#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/runtime.h"
#include "niwaki/kv_cache.h"

namespace niwaki::cuda {

/// Where chunk `chunk` (16 bytes, 8 float16 numbers) of a token lies in its row of a page or of shared
/// memory. Rows of whole 128 bytes are permuted, so that load_matrices reads eight rows without bank
/// conflicts.
__host__ __device__ constexpr int place_chunk(int token, int chunk, int head_dim) {
  return head_dim % 64 == 0 ? chunk ^ (token & 7) : chunk;
}

/// The pages of one layer, as kernels take them.
///
///    block 0                                               block 1
///   +---------------+-----------------+---------------+---+------
///   | keys, head 0  | values, head 0  | keys, head 1  |   |         page_bytes each
///   +---------------+-----------------+---------------+---+------
///
///   kF16: [block_size][head_dim], the chunks of a row as place_chunk has them
///   kQ8:  [block_size][head_dim] integers, then block_size float scales
///
/// Sixteen tokens from a multiple of sixteen on are one piece: bulk copies bring it into shared memory as it
/// is.
struct KvPages {
  unsigned char* layer;
  size_t page_bytes;
  int32_t kv_heads, head_dim, block_size;
  KvType type;

  __host__ __device__ unsigned char* keys(int32_t block, int32_t kv_head) const {
    return layer + (static_cast<size_t>(block) * kv_heads + kv_head) * 2 * page_bytes;
  }
  __host__ __device__ unsigned char* values(int32_t block, int32_t kv_head) const {
    return keys(block, kv_head) + page_bytes;
  }
};

/// Pages in the memory of the current GPU, zeros at first.
class CudaKvCache final : public KvCache {
 public:
  /// Throws kInvalidArgument, kOutOfMemory; kUnsupported for kF32.
  explicit CudaKvCache(const KvShape& shape);
  ~CudaKvCache() override;

  size_t bytes() const override { return static_cast<size_t>(shape().layers) * layer_bytes(); }
  KvPages pages(int32_t layer) const;

  // A block: [layer][kv head][keys, values]. They return when the copy has ended.
  void copy_block(int32_t from, int32_t to) override;
  void read_block(int32_t block, std::byte* out) const override;
  void write_block(int32_t block, const std::byte* bytes) override;

 private:
  size_t layer_bytes() const { return static_cast<size_t>(shape().blocks) * piece_bytes(); }
  /// Of a block in a layer, which lies in one piece.
  size_t piece_bytes() const { return static_cast<size_t>(shape().kv_heads) * 2 * page_bytes(shape()); }
  unsigned char* piece(int32_t layer, int32_t block) const {
    return memory_ + static_cast<size_t>(layer) * layer_bytes() + static_cast<size_t>(block) * piece_bytes();
  }

  unsigned char* memory_ = nullptr;
};

}  // namespace niwaki::cuda
