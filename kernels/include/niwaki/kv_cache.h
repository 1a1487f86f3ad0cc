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
  /// From a page to the same page of the next block.
  size_t block_bytes() const;

  // A block of all layers, [layer][kv head][keys, values]. Not while a step runs. Throw kInvalidArgument for
  // a block out of range.
  size_t all_layers_bytes() const;
  void copy_block(int32_t from, int32_t to);
  void read_block(int32_t block, std::byte* out) const;
  void write_block(int32_t block, const std::byte* bytes);

 private:
  void check_block(int32_t block) const;
  KvShape shape_;
  std::unique_ptr<PageMemory> memory_;
};

}  // namespace niwaki
