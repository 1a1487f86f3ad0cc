#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "cpu/page_memory.h"

namespace niwaki {

/// A piece of an arena: zero at first, aligned to 64 bytes.
class WeightMemory {
 public:
  WeightMemory() = default;
  /// Gives the pages that lie wholly inside back to the system.
  ~WeightMemory();
  WeightMemory(WeightMemory&& other) noexcept { swap(other); }
  WeightMemory& operator=(WeightMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  friend class WeightArena;
  void swap(WeightMemory& other) {
    std::swap(slab_, other.slab_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<const PageMemory> slab_;
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Lays packed weights side by side in large slabs, so that huge pages hold them all. (A mapping for each
/// matrix leaves its ends in small ones: a seventh of the weights of an 8B model.) What a piece leaves when
/// it ends is not given to another; a slab's addresses are free again when its last piece has ended.
///
///   slab:  | piece | piece |  piece  |    not touched yet    |
class WeightArena {
 public:
  /// Throws kOutOfMemory. Not from two threads at once.
  WeightMemory allocate(size_t bytes);

 private:
  std::shared_ptr<const PageMemory> slab_;
  size_t used_ = 0;  // bytes of it
};

}  // namespace niwaki
