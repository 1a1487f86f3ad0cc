#pragma once
#include <cstddef>
#include <string>
#include <utility>

#include "cuda/runtime.h"

namespace niwaki::cuda {

/// Memory of the current GPU.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /// Throws kOutOfMemory with what it was for. Not cleared.
  DeviceMemory(size_t bytes, const std::string& what);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  template <class T>
  T* at(size_t offset = 0) const {
    return reinterpret_cast<T*>(data_ + offset);
  }
  size_t size() const { return size_; }

 private:
  void swap(DeviceMemory& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Memory of the host that copies to and from the GPU need no detour for.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  template <class T>
  T* at(size_t offset = 0) const {
    return reinterpret_cast<T*>(data_ + offset);
  }
  size_t size() const { return size_; }

 private:
  void swap(PinnedMemory& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace niwaki::cuda
