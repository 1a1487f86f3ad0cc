#include "cpu/weight_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace niwaki {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSlab = size_t{256} << 20;

}  // namespace

WeightMemory::~WeightMemory() {
  if (bytes_ == 0) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t offset = reinterpret_cast<uintptr_t>(data_) % page;
  const size_t before = (page - offset) % page;
  const size_t end = (offset + bytes_) / page * page;
  if (end > offset + before) madvise(data_ + before, end - offset - before, MADV_DONTNEED);
}

WeightMemory WeightArena::allocate(size_t bytes) {
  if (slab_ == nullptr || bytes > slab_->size() - used_) {
    slab_ = std::make_shared<PageMemory>(std::max(kSlab, bytes), PageSize::kHuge, "weights");
    used_ = 0;
  }
  WeightMemory piece;
  piece.slab_ = slab_;
  piece.data_ = reinterpret_cast<uint8_t*>(slab_->data()) + used_;
  piece.bytes_ = bytes;
  used_ = std::min(slab_->size(), (used_ + bytes + kAlignment - 1) / kAlignment * kAlignment);
  return piece;
}

}  // namespace niwaki
