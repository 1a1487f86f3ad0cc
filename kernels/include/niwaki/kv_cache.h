#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace niwaki {

class PageMemory;

/// kQ8: integers from -127 to 127, a float scale for each token and KV head, of its keys and of its values.
enum class KvType : int32_t { kF16, kF32, kQ8 };

struct KvShape {
  int32_t layers;
  int32_t kv_heads;
  int32_t head_dim;    // a multiple of 16
  int32_t block_size;  // tokens in a block; a multiple of 16
  int32_t blocks;      // one block id serves all layers
  KvType type;
};

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

/// The pages of every layer. A token's slot is block * block_size + offset. Memory is reserved at once and
/// touched by the system only when a block is first written.
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
class KvCache {
 public:
  explicit KvCache(const KvShape& shape);  // throws kInvalidArgument, kOutOfMemory
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvShape& shape() const { return shape_; }
  size_t bytes() const;
  std::byte* keys(int32_t layer, int32_t block, int32_t kv_head) const;
  std::byte* values(int32_t layer, int32_t block, int32_t kv_head) const;
  const KvLayout& layout() const { return layout_; }
  /// What the layout counts from; all layers follow each other.
  std::byte* layer(int32_t layer) const;

  // A block of all layers, [layer][kv head][keys, values]. Not while a step runs. Throw kInvalidArgument for
  // a block out of range.
  size_t all_layers_bytes() const;
  void copy_block(int32_t from, int32_t to);
  void read_block(int32_t block, std::byte* out) const;
  void write_block(int32_t block, const std::byte* bytes);

 private:
  void check_block(int32_t block) const;
  size_t layer_bytes() const;
  template <class F>  // void(std::byte* page), in the order above
  void each_page(int32_t block, F&& f) const;

  KvShape shape_;
  KvLayout layout_;
  std::unique_ptr<PageMemory> memory_;
};

}  // namespace niwaki
