#pragma once
#include <cstddef>
#include <string>

namespace niwaki {

/// Zeroed memory straight from the system: reserved at once, and touched page by page when it is first
/// written.
class MappedMemory {
 public:
  MappedMemory() = default;
  ~MappedMemory();
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  /// Once. Throws kOutOfMemory; `what` is for its message.
  void reserve(size_t bytes, const std::string& what);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace niwaki
