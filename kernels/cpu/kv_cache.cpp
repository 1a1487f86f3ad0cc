#include "cpu/kv_cache.h"

#include <cstring>

#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr size_t kRunBytes = size_t{256} << 10;

KvLayout layout_of(const KvShape& shape) {
  KvLayout layout{page_bytes(shape), shape.kv_heads, shape.blocks, 1};
  while (layout.run_blocks < shape.blocks &&
         static_cast<size_t>(layout.run_blocks) * layout.page_bytes < kRunBytes)
    layout.run_blocks *= 2;
  return layout;
}

}  // namespace

CpuKvCache::CpuKvCache(const KvShape& shape)
    : KvCache(shape), layout_(layout_of(shape)), memory_(bytes(), PageSize::kHuge, "the KV cache") {}

size_t CpuKvCache::layer_bytes() const {
  return static_cast<size_t>(shape().blocks) * static_cast<size_t>(shape().kv_heads) * 2 * layout_.page_bytes;
}

std::byte* CpuKvCache::layer(int32_t layer) const {
  return memory_.data() + static_cast<size_t>(layer) * layer_bytes();
}

std::byte* CpuKvCache::keys(int32_t layer, int32_t block, int32_t kv_head) const {
  return this->layer(layer) + layout_.pages(block, kv_head).keys;
}

std::byte* CpuKvCache::values(int32_t layer, int32_t block, int32_t kv_head) const {
  return this->layer(layer) + layout_.pages(block, kv_head).values;
}

template <class F>
void CpuKvCache::each_page(int32_t block, F&& f) const {
  check_block(block);
  for (int32_t layer = 0; layer < shape().layers; ++layer) {
    for (int32_t head = 0; head < shape().kv_heads; ++head) {
      f(keys(layer, block, head));
      f(values(layer, block, head));
    }
  }
}

void CpuKvCache::copy_block(int32_t from, int32_t to) {
  check_block(from);
  check_block(to);
  if (from == to) return;
  for (int32_t layer = 0; layer < shape().layers; ++layer) {
    for (int32_t head = 0; head < shape().kv_heads; ++head) {
      std::memcpy(keys(layer, to, head), keys(layer, from, head), layout_.page_bytes);
      std::memcpy(values(layer, to, head), values(layer, from, head), layout_.page_bytes);
    }
  }
}

void CpuKvCache::read_block(int32_t block, std::byte* out) const {
  each_page(block, [&](const std::byte* page) {
    std::memcpy(out, page, layout_.page_bytes);
    out += layout_.page_bytes;
  });
}

void CpuKvCache::write_block(int32_t block, const std::byte* bytes) {
  each_page(block, [&](std::byte* page) {
    std::memcpy(page, bytes, layout_.page_bytes);
    bytes += layout_.page_bytes;
  });
}

const CpuKvCache& cpu_kv_cache(const KvCache& cache) {
  const auto* cpu = dynamic_cast<const CpuKvCache*>(&cache);
  if (cpu == nullptr) throw Error(ErrorCode::kInvalidArgument, "the KV cache was made by another device");
  return *cpu;
}

}  // namespace niwaki
