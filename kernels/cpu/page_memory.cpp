#include "cpu/page_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "niwaki/error.h"

namespace niwaki {

PageMemory::PageMemory(size_t bytes, PageSize size, const std::string& what) {
  if (bytes == 0) return;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  const size_t slack = size == PageSize::kHuge ? kHugePage : 0;
  errno = ENOMEM;
  void* memory =
      bytes > SIZE_MAX / 2 ? MAP_FAILED : mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory, "cannot reserve " + std::to_string(bytes) + " bytes for " + what +
                                             ": " + std::generic_category().message(errno));
  }
  data_ = static_cast<std::byte*>(memory);
  size_ = bytes;
  if (slack > 0) {
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(memory) % kHugePage) % kHugePage;
    if (before > 0) munmap(memory, before);
    data_ += before;
    size_ += slack - before;
#ifdef MADV_HUGEPAGE
    madvise(data_, size_, MADV_HUGEPAGE);
#endif
  }
}

PageMemory::~PageMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace niwaki
