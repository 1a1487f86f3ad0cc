#include "external_memory.h"

namespace niwaki::node {

void adjust_external_memory(Napi::BasicEnv env, int64_t bytes) {
  constexpr int64_t kLittle = int64_t{64} << 20;
  static thread_local int64_t held = 0, told = 0;  // of the thread's heap
  held += bytes;
  if (told <= held && held <= 2 * told + kLittle) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, held - told);
  told = held;
}

}  // namespace niwaki::node
