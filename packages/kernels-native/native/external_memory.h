#pragma once
#include <napi.h>

#include <cstdint>

namespace niwaki::node {

/// Tells the garbage collector how much native memory its objects hold, in bytes more or less than before:
/// roughly, as V8 collects the whole heap whenever it hears of 64 MB more, and a model comes in hundreds of
/// pieces. What it was told is never more than there is, and never less than half of it by more than 64 MB.
void adjust_external_memory(Napi::BasicEnv env, int64_t bytes);

}  // namespace niwaki::node
