#include "cpu/matrix_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

MatrixMemory::MatrixMemory(size_t bytes) {
  // A mapping that begins at a huge page and ends at a small one: huge pages serve all but the end, and none
  // is filled for bytes that nobody asked for.
  const size_t size = round_up(bytes, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  const size_t slack = size >= kHugePage ? kHugePage : 0;
  void* mapped = bytes > SIZE_MAX / 2 ? MAP_FAILED
                                      : mmap(nullptr, size + slack, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory,
                "There is no memory for " + std::to_string(bytes) + " bytes of weights.");
  }
  data_ = static_cast<uint8_t*>(mapped);
  bytes_ = size;
  if (slack > 0) {
    const auto address = reinterpret_cast<uintptr_t>(mapped);
    const size_t before = round_up(address, kHugePage) - address;
    if (before > 0) munmap(data_, before);
    data_ += before;
    if (slack > before) munmap(data_ + size, slack - before);
#if defined(MADV_HUGEPAGE)
    madvise(data_, size, MADV_HUGEPAGE);  // a wish: without huge pages all is well, only slower
#endif
  }
}

MatrixMemory::~MatrixMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

}  // namespace niwaki
