#include "cpu/stream_prefetch.h"

#include <unistd.h>

namespace niwaki {
namespace {

long first_level_bytes() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  return sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

const bool kStreamIntoFirstLevel = first_level_bytes() >= 48 << 10;

}  // namespace niwaki
