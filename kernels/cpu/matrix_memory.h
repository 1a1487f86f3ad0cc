#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace niwaki {

/// Pages of memory, zero at first, aligned to at least 64 bytes. Large ones ask the system for huge pages: at
/// the rate at which weights are read, small pages cost more than the reading.
class MatrixMemory {
 public:
  MatrixMemory() = default;
  /// Throws kOutOfMemory.
  explicit MatrixMemory(size_t bytes);
  ~MatrixMemory();
  MatrixMemory(MatrixMemory&& other) noexcept { swap(other); }
  MatrixMemory& operator=(MatrixMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(MatrixMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace niwaki
