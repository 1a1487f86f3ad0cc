#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/page_memory.h"
#include "niwaki/kv_cache.h"

namespace niwaki {

/// Where the pages of a layer lie. The keys of neighboring blocks make a run, and so do their values: memory
/// is read a fifth faster in runs of 256 KB than page by page.
///
///     head 0 keys of blocks 0, 1, ...   head 0 values   head 1 keys   ...
///   +---------------------------------+---------------+-------------+-----   then the next run_blocks blocks
///   | page | page | ...               | ...           | ...         |
///   +---------------------------------+---------------+-------------+-----
struct KvLayout {
  struct Pages {  // bytes from the start of the layer
    size_t keys;
    size_t values;
  };
  size_t page_bytes;
  int32_t kv_heads;
  int32_t blocks;
  int32_t run_blocks;

  constexpr Pages pages(int32_t block, int32_t kv_head) const {
    const int32_t first = block - block % run_blocks;
    const auto run = static_cast<size_t>(blocks - first < run_blocks ? blocks - first : run_blocks);
    const size_t before = static_cast<size_t>(first) * static_cast<size_t>(kv_heads) +
                          static_cast<size_t>(kv_head) * run;  // pairs of pages
    const size_t keys = 2 * before + static_cast<size_t>(block - first);
    return {keys * page_bytes, (keys + run) * page_bytes};
  }
};

/// Pages in the CPU's memory, which is reserved at once and touched by the system only when a block is first
/// written.
///
///   keys of (layer, block, kv head):    [head_dim][block_size]   a lane is a token
///   values of (layer, block, kv head):  [block_size][head_dim]   a lane is a dimension
///
/// A page of kQ8 ends in the scales of its tokens; x[d] is integer[d] * scale, scale about max |x| / 127:
///
///    head_dim * block_size int8          block_size float
///   +---------------------------------+------------------+
///   | integers, in the order above    | scale of a token |
///   +---------------------------------+------------------+
class CpuKvCache final : public KvCache {
 public:
  explicit CpuKvCache(const KvShape& shape);  // throws kInvalidArgument, kOutOfMemory

  size_t bytes() const override { return static_cast<size_t>(shape().layers) * layer_bytes(); }
  std::byte* keys(int32_t layer, int32_t block, int32_t kv_head) const;
  std::byte* values(int32_t layer, int32_t block, int32_t kv_head) const;
  const KvLayout& layout() const { return layout_; }
  /// What the layout counts from; all layers follow each other.
  std::byte* layer(int32_t layer) const;

  // A block: [layer][kv head][keys, values].
  void copy_block(int32_t from, int32_t to) override;
  void read_block(int32_t block, std::byte* out) const override;
  void write_block(int32_t block, const std::byte* bytes) override;

 private:
  size_t layer_bytes() const;
  template <class F>  // void(std::byte* page), in the order above
  void each_page(int32_t block, F&& f) const;

  KvLayout layout_;
  PageMemory memory_;
};

/// Throws kInvalidArgument for a cache of another device.
const CpuKvCache& cpu_kv_cache(const KvCache& cache);

}  // namespace niwaki
