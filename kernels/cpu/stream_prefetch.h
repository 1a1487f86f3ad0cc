#pragma once

namespace niwaki {

/// Whether what is read once should be asked for past the second-level cache, into the first one. That saves
/// a step where the first level has room for it beside the tables and queries in use (48 KB). Where it has 32
/// KB, or is not known, part of it would be pushed out again before its turn.
extern const bool kStreamIntoFirstLevel;

}  // namespace niwaki
