#pragma once

namespace niwaki {

/// Whether what is read once should be asked for past the second-level cache, into the first one. That saves
/// a step where the first level has room for it beside the tables and queries in use (48 KB). Where it has 32
/// KB, or is not known, part of it would be pushed out again before its turn.
extern const bool kStreamIntoFirstLevel;

namespace {

/// Where a stream waits in the second level: asks for what comes after one of its lines, once for each line
/// that is used, so that requests leave about as evenly as data arrives. Three times, as a request that finds
/// no room is dropped. Past the end of a stream nothing is harmed. Always inline: gcc takes a function that
/// only prefetches for one without an effect, and drops its calls.
__attribute__((always_inline)) inline void ask_ahead_by_second_level(const void* line) {
  const auto* p = static_cast<const char*>(line);
  __builtin_prefetch(p + 18 * 1024, 0, 2);
  __builtin_prefetch(p + 9 * 1024, 0, 2);
  __builtin_prefetch(p + 4 * 1024, 0, 2);
}

}  // namespace
}  // namespace niwaki
