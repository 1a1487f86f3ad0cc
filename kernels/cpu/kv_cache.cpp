#include "niwaki/kv_cache.h"

#include <cstring>
#include <string>

#include "cpu/page_memory.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

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

constexpr size_t kRunBytes = size_t{256} << 10;

KvLayout layout_of(const KvShape& shape) {
  KvLayout layout{page_bytes(shape), shape.kv_heads, shape.blocks, 1};
  while (layout.run_blocks < shape.blocks &&
         static_cast<size_t>(layout.run_blocks) * layout.page_bytes < kRunBytes)
    layout.run_blocks *= 2;
  return layout;
}

}  // namespace

KvCache::KvCache(const KvShape& shape)
    : shape_(checked(shape)),
      layout_(layout_of(shape_)),
      memory_(std::make_unique<PageMemory>(bytes(), PageSize::kHuge, "the KV cache")) {}

KvCache::~KvCache() = default;

size_t KvCache::layer_bytes() const {
  return static_cast<size_t>(shape_.blocks) * static_cast<size_t>(shape_.kv_heads) * 2 * layout_.page_bytes;
}

size_t KvCache::bytes() const {
  return static_cast<size_t>(shape_.layers) * layer_bytes();
}

std::byte* KvCache::layer(int32_t layer) const {
  return memory_->data() + static_cast<size_t>(layer) * layer_bytes();
}

std::byte* KvCache::keys(int32_t layer, int32_t block, int32_t kv_head) const {
  return this->layer(layer) + layout_.pages(block, kv_head).keys;
}

std::byte* KvCache::values(int32_t layer, int32_t block, int32_t kv_head) const {
  return this->layer(layer) + layout_.pages(block, kv_head).values;
}

template <class F>
void KvCache::each_page(int32_t block, F&& f) const {
  check_block(block);
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    for (int32_t head = 0; head < shape_.kv_heads; ++head) {
      f(keys(layer, block, head));
      f(values(layer, block, head));
    }
  }
}

void KvCache::check_block(int32_t block) const {
  if (block < 0 || block >= shape_.blocks) {
    throw Error(ErrorCode::kInvalidArgument, "KV cache: block " + std::to_string(block) + " is not one of " +
                                                 std::to_string(shape_.blocks));
  }
}

size_t KvCache::all_layers_bytes() const {
  return bytes() / static_cast<size_t>(shape_.blocks);
}

void KvCache::copy_block(int32_t from, int32_t to) {
  check_block(from);
  check_block(to);
  if (from == to) return;
  for (int32_t layer = 0; layer < shape_.layers; ++layer) {
    for (int32_t head = 0; head < shape_.kv_heads; ++head) {
      std::memcpy(keys(layer, to, head), keys(layer, from, head), layout_.page_bytes);
      std::memcpy(values(layer, to, head), values(layer, from, head), layout_.page_bytes);
    }
  }
}

void KvCache::read_block(int32_t block, std::byte* out) const {
  each_page(block, [&](const std::byte* page) {
    std::memcpy(out, page, layout_.page_bytes);
    out += layout_.page_bytes;
  });
}

void KvCache::write_block(int32_t block, const std::byte* bytes) {
  each_page(block, [&](std::byte* page) {
    std::memcpy(page, bytes, layout_.page_bytes);
    bytes += layout_.page_bytes;
  });
}

}  // namespace niwaki
