#include "niwaki/kv_cache.h"

#include <string>

#include "niwaki/error.h"

namespace niwaki {

size_t page_bytes(const KvShape& shape) {
  const auto tokens = static_cast<size_t>(shape.block_size), dim = static_cast<size_t>(shape.head_dim);
  switch (shape.type) {
    case KvType::kF16:
      return tokens * dim * sizeof(uint16_t);
    case KvType::kF32:
      return tokens * dim * sizeof(float);
    case KvType::kQ8:
      return tokens * (dim + sizeof(float));
  }
  return 0;
}

namespace {

KvShape checked(const KvShape& shape) {
  const auto require = [](bool ok, const char* what, int32_t got) {
    if (!ok)
      throw Error(ErrorCode::kInvalidArgument,
                  std::string("KV cache: ") + what + ", got " + std::to_string(got));
  };
  require(shape.layers > 0, "layers must be at least 1", shape.layers);
  require(shape.kv_heads > 0, "kv_heads must be at least 1", shape.kv_heads);
  require(shape.head_dim > 0 && shape.head_dim % 16 == 0, "head_dim must be a positive multiple of 16",
          shape.head_dim);
  require(shape.block_size > 0 && shape.block_size % 16 == 0, "block_size must be a positive multiple of 16",
          shape.block_size);
  require(shape.blocks > 0, "blocks must be at least 1", shape.blocks);
  require(shape.type >= KvType::kF16 && shape.type <= KvType::kQ8, "unknown type",
          static_cast<int32_t>(shape.type));
  // layers * blocks * kv_heads * 2 pages; every factor is under 2^31, so two steps of 64 bits can be checked.
  size_t bytes = page_bytes(shape);
  bool fits = static_cast<uint64_t>(shape.head_dim) * static_cast<uint64_t>(shape.block_size) < uint64_t{1}
                                                                                                    << 40;
  for (const int32_t factor : {2, shape.layers, shape.blocks, shape.kv_heads}) {
    fits = fits && !__builtin_mul_overflow(bytes, static_cast<size_t>(factor), &bytes) &&
           bytes < size_t{1} << 47;
  }
  if (!fits) {
    throw Error(ErrorCode::kOutOfMemory, "KV cache: " + std::to_string(shape.blocks) + " blocks of " +
                                             std::to_string(shape.block_size) +
                                             " tokens are more than can be addressed");
  }
  return shape;
}

}  // namespace

KvCache::KvCache(const KvShape& shape) : shape_(checked(shape)) {}

void KvCache::check_block(int32_t block) const {
  if (block < 0 || block >= shape_.blocks) {
    throw Error(ErrorCode::kInvalidArgument, "KV cache: block " + std::to_string(block) + " is not one of " +
                                                 std::to_string(shape_.blocks));
  }
}

}  // namespace niwaki
