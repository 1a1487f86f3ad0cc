#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace niwaki {

/// A file mapped read-only. The mapping is of the size the file had when it was opened.
class MappedFile {
 public:
  /// Throws kIo with the path and the system's reason.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

  /// Tells the system that the pages of a range will not be read again, so that they leave this process's
  /// memory.
  void release(size_t offset, size_t bytes) const;

  /// Throws kIo if the file has become shorter than the mapping (reading it would then end the process).
  void check_size() const;

 private:
  MappedFile() = default;
  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  int descriptor_ = -1;
};

}  // namespace niwaki
