#include "niwaki/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "niwaki/error.h"

namespace niwaki {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what, int reason) {
  throw Error(ErrorCode::kIo,
              "cannot " + what + " \"" + path + "\": " + std::generic_category().message(reason));
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not hold us up
  if (file->descriptor_ < 0) fail(path, "open", errno);
  struct stat status;
  if (fstat(file->descriptor_, &status) != 0) fail(path, "read", errno);
  if (S_ISDIR(status.st_mode)) fail(path, "read", EISDIR);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::kIo, "\"" + path + "\" is not a regular file");
  if (status.st_size == 0) throw Error(ErrorCode::kIo, "\"" + path + "\" is empty");
  file->size_ = static_cast<size_t>(status.st_size);
  void* data = mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, file->descriptor_, 0);
  if (data == MAP_FAILED) fail(path, "map", errno);
  file->data_ = static_cast<const uint8_t*>(data);
  madvise(data, file->size_, MADV_SEQUENTIAL);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
  if (descriptor_ >= 0) close(descriptor_);
}

void MappedFile::release(size_t offset, size_t bytes) const {
  // Whole pages only: what else lies on the first and the last one may still be read.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (std::min(offset, size_) + page - 1) / page * page;
  const size_t end = bytes >= size_ - std::min(offset, size_) ? size_ : (offset + bytes) / page * page;
  if (begin < end) madvise(const_cast<uint8_t*>(data_) + begin, end - begin, MADV_DONTNEED);
}

void MappedFile::check_size() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) fail(path_, "read", errno);
  if (static_cast<size_t>(status.st_size) < size_) {
    throw Error(ErrorCode::kIo, "\"" + path_ + "\" was " + std::to_string(size_) +
                                    " bytes when it was opened and is now " + std::to_string(status.st_size) +
                                    ": it was changed while in use, load it again");
  }
}

}  // namespace niwaki
