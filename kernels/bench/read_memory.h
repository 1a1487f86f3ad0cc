#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/thread_pool.h"

namespace niwaki {

/// From inside a job: reads memory and does nothing with it, each thread its share; what bounds a kernel that
/// has to read it.
inline void read_memory(ThreadPool& pool, const void* data, size_t bytes) {
  typedef uint64_t Line __attribute__((vector_size(64)));
  constexpr int64_t kPiece = 64 << 10, kAhead = 4096;
  static std::atomic<uint64_t> sink{0};
  const auto* memory = static_cast<const uint8_t*>(data);
  const auto size = static_cast<int64_t>(bytes) / 256 * 256;
  pool.parallel([&](Worker& worker) {
    worker.each((size + kPiece - 1) / kPiece, 1, [&](int64_t piece, int64_t) {
      const uint8_t *begin = memory + piece * kPiece, *end = memory + std::min(size, (piece + 1) * kPiece);
      Line a{}, b{}, c{}, d{};
      for (const uint8_t* p = begin; p < end; p += 256) {
        for (int i = 0; i < 256; i += 64) __builtin_prefetch(p + kAhead + i, 0, 0);
        const auto* lines = reinterpret_cast<const Line*>(p);
        a |= lines[0];
        b |= lines[1];
        c |= lines[2];
        d |= lines[3];
      }
      a |= b | c | d;
      sink += a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    });
  });
}

}  // namespace niwaki
