#include "cpu/mapped_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <system_error>

#include "niwaki/error.h"

namespace niwaki {

void MappedMemory::reserve(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory, "cannot reserve " + std::to_string(bytes) + " bytes for " + what +
                                             ": " + std::generic_category().message(errno));
  }
  data_ = static_cast<std::byte*>(memory);
  size_ = bytes;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace niwaki
