#pragma once
#include <napi.h>

#include <cstdint>

namespace niwaki::node {

/// Tells the garbage collector that objects of JavaScript hold so many bytes of native memory more, or less.
/// V8 collects the whole heap whenever it hears of 64 MB more, and a model comes in hundreds of pieces; so it
/// hears in steps that grow: of what is held at least half, but for 64 MB, and never more than all.
void adjust_external_memory(Napi::BasicEnv env, int64_t bytes);

}  // namespace niwaki::node
