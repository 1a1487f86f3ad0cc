#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace niwaki {

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

/// The pages of every layer, in the memory of the device that made them. A token's slot is block * block_size
/// + offset. What lies in a block is the device's own.
class KvCache {
 public:
  /// Throws kInvalidArgument; kOutOfMemory for one that is more than can be addressed.
  explicit KvCache(const KvShape& shape);
  virtual ~KvCache() = default;
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvShape& shape() const { return shape_; }
  virtual size_t bytes() const = 0;

  // A block of all layers. Not while a step runs. Throw kInvalidArgument for a block out of range.
  size_t all_layers_bytes() const { return bytes() / static_cast<size_t>(shape_.blocks); }
  virtual void copy_block(int32_t from, int32_t to) = 0;
  virtual void read_block(int32_t block, std::byte* out) const = 0;
  virtual void write_block(int32_t block, const std::byte* bytes) = 0;

 protected:
  void check_block(int32_t block) const;

 private:
  KvShape shape_;
};

/// Bytes of the keys, or of the values, of a block of one layer and KV head.
size_t page_bytes(const KvShape& shape);

}  // namespace niwaki
