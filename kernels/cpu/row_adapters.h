#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "cpu/adapter_kernels.h"
#include "cpu/thread_pool.h"
#include "niwaki/step.h"

namespace niwaki {

class CpuAdapterSlots;
struct AdapterPart;

/// The adapters of the rows of a step: gathered once, then used by every linear operation, which takes all
/// rows through A (`project`) while it prepares them, and then, as it writes its results, through B (`add`).
/// Rows without an adapter appear nowhere.
class RowAdapters {
 public:
  /// `sequences` has the sequence of each row, ascending. Throws kInvalidArgument if a row wants a slot that
  /// holds no adapter.
  void gather(const CpuAdapterSlots* slots, const Step& step, std::span<const int32_t> sequences);

  /// Whether a row has an adapter that touches a linear operation of the plan.
  bool touch(size_t op) const;

  /// Begins a linear operation of the plan. False if no row has an adapter that touches it; nothing else must
  /// then be called.
  bool begin(size_t op);

  /// By every thread of a phase: t = A x of all rows and all parts of the matrix. The threads may have x each
  /// for itself.
  void project(Worker& worker, const float* x, int64_t x_stride);

  /// Begins a tile of the operation: rows [first, first + count) of the step. Returns its number.
  size_t begin_tile(int64_t first, int64_t count);

  /// Has the memory of B fetched, for what `add` will be called with.
  void prefetch(size_t tile, size_t part, int64_t first, int64_t count) const;

  /// y += what the adapters of the tile's rows add to `count` rows of a part of the matrix from `first` (a
  /// multiple of 16) on. y has base = W x, to a multiple of 16 values.
  void add(size_t tile, size_t part, int64_t first, int64_t count, float* y, int64_t y_stride) const;

 private:
  struct Row {
    int64_t row;
    int64_t entry;  // of its first adapter: where its ranks lie in t
  };
  struct Group {  // rows with the same mix
    const std::vector<AdapterUse>* mix;
    std::vector<Row> rows;  // ascending
  };
  struct Item {  // of `project`
    const AdapterPart* part;
    int64_t part_index;
    int32_t rank;  // the first
    const Row* rows;
    int32_t count;
  };
  struct Addend {  // of `add`: rows of the tile with the same mix
    size_t part;
    size_t first_term;
    int terms;
    const Row* rows;
    int count;
  };
  struct Tile {
    int64_t first_row;
    size_t first, last;  // of `addends_`
  };
  std::span<const Addend> addends_of(const Tile& tile) const {
    return std::span(addends_).subspan(tile.first, tile.last - tile.first);
  }

  const CpuAdapterSlots* slots_ = nullptr;
  std::vector<Group> groups_;
  std::vector<std::vector<Row>> rows_of_slot_;
  int64_t entries_ = 0;

  // Of the operation that runs.
  const std::vector<int32_t>* targets_ = nullptr;
  int64_t columns_ = 0;
  int64_t t_stride_ = 0;  // floats of an entry
  std::vector<float> t_;  // [entry][part][padded rank]
  std::vector<Item> items_;
  std::vector<AdapterTerm> terms_;
  std::vector<Addend> addends_;
  std::vector<Tile> tiles_;
};

}  // namespace niwaki
