#pragma once
#include <cstddef>
#include <string>
#include <utility>

namespace niwaki {

constexpr size_t kHugePage = size_t{2} << 20;

enum class PageSize { kSmall, kHuge };

/// Zeroed memory straight from the system: reserved at once, and touched page by page when it is first
/// written. Huge pages (a wish; without them all is well, only slower) are for what is read as a whole and
/// often: with small ones, finding the pages costs more than reading them.
class PageMemory {
 public:
  PageMemory() = default;
  /// Throws kOutOfMemory; `what` is for its message. With huge pages, memory begins at one.
  PageMemory(size_t bytes, PageSize size, const std::string& what);
  ~PageMemory();
  PageMemory(PageMemory&& other) noexcept { swap(other); }
  PageMemory& operator=(PageMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void swap(PageMemory& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace niwaki
