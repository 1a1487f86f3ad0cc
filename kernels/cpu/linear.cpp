#include "cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "cpu/matrix.h"
#include "cpu/row_adapters.h"
#include "cpu/row_kernels.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

/// Up to so many rows of the step wait for memory.
constexpr int kWaitingRows = 3;
/// Blocks of rows between which the adapters of such rows add.
constexpr int64_t kFewBlocks = 2;
/// Bytes of weights that are asked for with every group of activations that a few rows prepare: as much as
/// the memory gives meanwhile.
constexpr int kGroupAhead = 1024;
/// The same, of few rows that every thread prepares for itself, before they are normed.
constexpr int kNormAhead = 8192;
/// More threads than this share the building of tables: what each does alone would take longer than they wait
/// for each other, and for what comes from another core.
constexpr int kAloneThreads = 4;
/// Groups of activations that a thread prepares at a time.
constexpr int64_t kRunGroups = 4;
/// Rows of the step that are prepared together at most.
constexpr int64_t kTogetherRows = 512;
/// Runs of blocks, each of one tile, that a thread takes of tiles together at least, where the matrix has
/// them.
constexpr int64_t kTogetherRuns = 8;
/// Floats between the rows of a tile in a thread's results: not a multiple of 4 KB, so that they do not share
/// cache sets.
constexpr int64_t kSumStride = kRunRows + 16;

bool all_finite(const float* x, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

/// Asks for `bytes` of weights to come closer, past the end of a matrix too, where nothing is harmed. Returns
/// what follows them.
const uint8_t* ask_for(const uint8_t* weights, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(weights + at, 0, 2);
  return weights + bytes;
}

}  // namespace

Linear::Linear(const Tier& tier, const CpuMatrix& matrix, Activation activation, bool accumulate,
               int64_t max_rows)
    : kernels_(tier.linear),
      row_kernels_(tier.rows),
      matrix_(matrix),
      activation_(activation),
      accumulate_(accumulate),
      one_stream_(matrix.parts()[0].alternates()),
      groups_((matrix.columns() + kGroupColumns - 1) / kGroupColumns) {
  const auto& parts = matrix.parts();
  if (activation == Activation::kSwiglu && (parts.size() != 2 || parts[0].rows != parts[1].rows)) {
    throw Error(ErrorCode::kInvalidArgument,
                "SwiGLU needs a matrix of two tensors of equal rows, gate and up; this one has " +
                    std::to_string(parts.size()) + " tensors and " + std::to_string(matrix.rows()) +
                    " rows.");
  }
  for (const CpuMatrix::Part& part : parts) {
    if (is_sign_type(part.type)) {
      if (part.order != kernels_.sign_order)
        throw Error(ErrorCode::kInvalidArgument, "the tensor " + part.name + " is packed for another tier");
      needs_quanta_ = needs_tables_[sign_layout(part.type).bits] = true;
    } else {
      has_floats_ = true;
      needs_padding_ = matrix.columns() % 16 != 0;
    }
  }
  tile_rows_ = static_cast<int>(std::clamp<int64_t>(max_rows, 1, kernels_.tile_rows));
  const auto tile_rows = static_cast<size_t>(tile_rows_);
  const auto groups = static_cast<size_t>(groups_);
  size_t bytes = 0;
  const auto reserve = [&bytes](size_t size) {
    const size_t offset = bytes;
    bytes += (size + 63) / 64 * 64;
    return offset;
  };
  if (needs_quanta_) scales_ = reserve(tile_rows * groups * sizeof(float));
  if (has_lanes()) {
    lanes_ = reserve(groups * kGroupColumns * static_cast<size_t>(kernels_.tile_rows) * sizeof(int16_t));
  }
  if (needs_padding_)
    padded_ = reserve(tile_rows * static_cast<size_t>(padded_columns(matrix.columns())) * sizeof(float));
  tile_bytes_ = bytes;
  if (has_lanes() || !needs_quanta_)
    most_tiles_ = std::clamp<int64_t>(max_rows / tile_rows_, 1, kTogetherRows / tile_rows_);
  bytes *= most_tiles_;
  const auto most = static_cast<size_t>(kernels_.lane_blocks > 1 ? kernels_.tile_rows : kernels_.table_rows);
  const size_t table_rows = std::min(tile_rows, most);
  for (int bits = 1; bits <= 2; ++bits) {
    if (!needs_tables_[bits]) continue;
    tables_[bits] = reserve(groups * largest_tables(bits, table_rows));
    offsets_[bits] = reserve(table_rows * groups * 2 * sizeof(int32_t));
  }
  if (needs_quanta_) quanta_ = reserve(groups * table_rows * kGroupColumns * sizeof(int16_t));
  workers_ = reserve(0);
  for (const bool few : {true, false}) {
    const size_t rows = few ? std::min<size_t>(table_rows, kFewRows) : table_rows;
    Own& own = few ? own_few_ : own_;
    bytes = (sum_floats() + workspace_floats() + normed_floats()) * sizeof(float);
    own.scales = reserve(groups * rows * sizeof(float));
    for (int bits = 1; bits <= 2; ++bits) {
      if (!needs_tables_[bits]) continue;
      own.tables[bits] = reserve(groups * largest_tables(bits, rows));
      own.offsets[bits] = reserve(groups * rows * 2 * sizeof(int32_t));
    }
    own.bytes = bytes;
  }
}

/// Bytes of the tables of one group, of tiles of up to `most_rows` rows.
size_t Linear::largest_tables(int bits, size_t most_rows) const {
  size_t bytes = 0;
  for (size_t rows = 1; rows <= most_rows; ++rows)
    bytes = std::max(bytes, rows * kernels_.table_bytes(static_cast<int>(rows), bits));
  return bytes;
}

int64_t Linear::out_columns() const {
  return activation_ == Activation::kSwiglu ? matrix_.rows() / 2 : matrix_.rows();
}

/// A thread's own scratch: results, the kernels' workspace, rows that it normed, and rows that it prepared
/// itself.
std::byte* Linear::worker_scratch(const Tile& tile, const Worker& worker) const {
  return tile.workers + static_cast<size_t>(worker.index()) * own_of(worker.count()).bytes;
}

/// What each of so many threads has room for.
const Linear::Own& Linear::own_of(int threads) const {
  return threads <= kAloneThreads ? own_ : own_few_;
}

float* Linear::worker_sums(const Tile& tile, const Worker& worker) const {
  return reinterpret_cast<float*>(worker_scratch(tile, worker));
}

float* Linear::worker_normed(const Tile& tile, const Worker& worker) const {
  return worker_sums(tile, worker) + sum_floats() + workspace_floats();
}

size_t Linear::sum_floats() const {
  return static_cast<size_t>(tile_rows_) * kSumStride;
}

size_t Linear::workspace_floats() const {
  return has_lanes() ? static_cast<size_t>(kLaneFloats * kernels_.tile_rows) * kRunRows : 0;
}

size_t Linear::normed_floats() const {
  return takes_norm() ? kFewRows * static_cast<size_t>(groups_ * kGroupColumns) : 0;
}

size_t Linear::scratch_bytes(int threads) const {
  return workers_ + static_cast<size_t>(threads) * own_of(threads).bytes;
}

Linear::Tile Linear::tile_of(int64_t first_row, int64_t rows, std::byte* scratch, size_t index) const {
  std::byte* own = scratch + index * tile_bytes_;
  const auto floats = [](std::byte* at) { return reinterpret_cast<float*>(at); };
  Tile tile{};
  tile.sign.rows = static_cast<int>(rows);
  tile.sign.columns = matrix_.columns();
  tile.sign.groups = groups_;
  tile.sign.scales = floats(own + scales_);
  for (int bits = 1; bits <= 2; ++bits) {
    tile.sign.tables[bits] = reinterpret_cast<uint8_t*>(scratch + tables_[bits]);
    tile.sign.offsets[bits] = reinterpret_cast<int32_t*>(scratch + offsets_[bits]);
  }
  tile.padded = floats(own + padded_);
  tile.quanta = reinterpret_cast<int16_t*>(scratch + quanta_);
  tile.workers = scratch + workers_;
  tile.first_row = first_row;
  return tile;
}

/// Whether full tiles of so many rows are multiplied together: prepared in one phase, and each run of weights
/// taken through all of them. What tables take for it would fit no cache.
bool Linear::go_together(int64_t rows) const {
  const Items all = items();
  return most_tiles_ > 1 && rows >= 2 * tile_rows_ &&
         (!needs_quanta_ || all.count * all.blocks >= kernels_.lane_blocks);
}

/// Rows of the next tile, of those that are left.
int64_t Linear::rows_of_tile(int64_t left) const {
  // By tables a row costs the same in a tile of any size, but a tile reads all weights: tiles of equal size.
  // Lanes are worth most when full, unless tables for nearly as many rows cost no more: then a small tile
  // after full ones would.
  const int64_t tiles = (left + tile_rows_ - 1) / tile_rows_;
  const bool equal = 4 * kernels_.table_rows > 3 * kernels_.tile_rows && !go_together(left);
  return equal ? (left + tiles - 1) / tiles : std::min<int64_t>(left, tile_rows_);
}

int64_t Linear::run(ThreadPool& pool, int64_t rows, const float* x, int64_t x_stride, float* y,
                    int64_t y_stride, std::byte* scratch, RowAdapters* adapters, const RowNorm* norm,
                    Input* next) const {
  Tiles tiles;
  for (int64_t first = 0; first < rows;) {
    const bool together = go_together(rows - first);
    const int64_t count = rows_of_tile(rows - first);
    const size_t most = together ? std::min(most_tiles_, static_cast<size_t>((rows - first) / count)) : 1;
    for (tiles.count = 0; tiles.count < most; ++tiles.count, first += count) {
      Tile& tile = tiles.list[tiles.count] = tile_of(first, count, scratch, tiles.count);
      if (needs_quanta_ && (together || by_lanes(count, pool.threads())))
        tile.sign.lanes = reinterpret_cast<int16_t*>(scratch + tiles.count * tile_bytes_ + lanes_);
      tile.quantized = needs_quanta_ && tile.sign.lanes == nullptr && pool.threads() <= kAloneThreads;
      tile.norm = norm;
      tile.adapters = adapters;
      if (adapters != nullptr) tile.adapter_tile = adapters->begin_tile(first, count);
    }
    const Tile& tile = tiles.list[0];
    if (norm != nullptr && tile.quantized && adapters == nullptr)
      return run_alone(pool, tile, x, x_stride, y, y_stride, next);
    const int64_t bad_row = prepare(pool, x, x_stride, tiles.all());
    if (bad_row >= 0) return bad_row;
    multiply(pool, tiles.all(), y, y_stride, next);
  }
  return -1;
}

int64_t Linear::run(ThreadPool& pool, const Input& input, float* y, int64_t y_stride) const {
  const int64_t bad_row = input.bad_row_.found();
  if (bad_row < 0) multiply(pool, {&input.tile_, 1}, y, y_stride, nullptr);
  return bad_row;
}

Linear::Input::Input(const Linear& linear, int64_t rows, const float* x, int64_t x_stride, std::byte* scratch)
    : linear_(linear), x_(x), x_stride_(x_stride), tile_(linear.tile_of(0, rows, scratch)) {
  tile_.quantized = true;
}

void Linear::Input::prepare(int64_t row, int64_t first, int64_t count) {
  for (int64_t column = first; column < first + count; column += kGroupColumns) {
    const int64_t group = column / kGroupColumns;
    if (!linear_.prepare_row(tile_, x_, x_stride_, row, group, quanta_of(tile_, row, group)))
      bad_row_.note(row);
  }
}

/// Few rows that every thread norms and prepares for itself before it begins to multiply: there is nothing to
/// wait for, and no tables come from another core. Returns the lowest that is not finite, or -1.
int64_t Linear::run_alone(ThreadPool& pool, const Tile& tile, const float* x, int64_t x_stride, float* y,
                          int64_t y_stride, Input* next) const {
  const Items all = items();
  const Grain grain = grain_for(all, tile, pool.threads(), next);
  LowestRow bad_row;
  pool.parallel([&](Worker& worker) {
    Tile own = own_tile(tile, worker);
    own.sign.scales = reinterpret_cast<float*>(worker_scratch(tile, worker) + own_of(worker.count()).scales);
    const uint8_t* weights = first_weights(worker);
    if (weights != nullptr) weights = ask_for(weights, kNormAhead);
    const float* normed = norm_rows(tile, worker, x, x_stride, bad_row);
    for (int64_t group = 0; group < groups_; ++group) {
      if (weights != nullptr) weights = ask_for(weights, kGroupAhead);
      for (int row = 0; row < tile.sign.rows; ++row) {
        if (!prepare_tables(own, normed, normed_stride(), row, group)) bad_row.note(row);
      }
    }
    worker.each(all.count, grain, [&](int64_t begin, int64_t end) {
      multiply_items(worker, begin, end, all.blocks, own, y, y_stride, next);
    });
  });
  return bad_row.found();
}

/// The rows of the tile, normed into memory of the thread's own, normed_stride() apart.
const float* Linear::norm_rows(const Tile& tile, const Worker& worker, const float* x, int64_t x_stride,
                               LowestRow& bad_row) const {
  float* normed = worker_normed(tile, worker);
  for (int row = 0; row < tile.sign.rows; ++row) {
    if (!row_kernels_.rms_norm(x + row * x_stride, tile.norm->weight, tile.norm->eps, matrix_.columns(),
                               normed + row * normed_stride())) {
      bad_row.note(row);
    }
  }
  return normed;
}

/// The quanta of one group of a row of a tile.
int16_t* Linear::quanta_of(const Tile& tile, int64_t row, int64_t group) {
  return tile.quanta + (group * tile.sign.rows + row) * kGroupColumns;
}

/// The tile with tables and offsets of the thread's own.
Linear::Tile Linear::own_tile(const Tile& tile, const Worker& worker) const {
  std::byte* scratch = worker_scratch(tile, worker);
  const Own& at = own_of(worker.count());
  Tile own = tile;
  for (int bits = 1; bits <= 2; ++bits) {
    own.sign.tables[bits] = reinterpret_cast<uint8_t*>(scratch + at.tables[bits]);
    own.sign.offsets[bits] = reinterpret_cast<int32_t*>(scratch + at.offsets[bits]);
  }
  return own;
}

/// The same with these tables built.
Linear::Tile Linear::built_tile(const Tile& tile, const Worker& worker) const {
  const Tile own = own_tile(tile, worker);
  const uint8_t* weights = first_weights(worker);
  for (int64_t group = 0; group < groups_; ++group) {
    if (weights != nullptr) weights = ask_for(weights, kGroupAhead);
    for (int row = 0; row < own.sign.rows; ++row) build_tables(own, quanta_of(own, row, group), row, group);
  }
  return own;
}

/// Makes tiles of equal size ready. Returns the lowest row that is not finite, or -1.
int64_t Linear::prepare(ThreadPool& pool, const float* rows, int64_t rows_stride,
                        std::span<Tile> tiles) const {
  LowestRow bad_row;
  const Tile& first = tiles[0];
  const int64_t tile_groups = first.sign.lanes != nullptr ? groups_ : first.sign.rows * groups_;
  pool.parallel([&](Worker& worker) {
    const float* x = rows;
    int64_t x_stride = rows_stride;
    if (first.norm != nullptr) {
      x = norm_rows(first, worker, rows, rows_stride, bad_row);
      x_stride = normed_stride();
    }
    if (first.adapters != nullptr && first.first_row == 0) first.adapters->project(worker, x, x_stride);
    const uint8_t* weights = first.sign.rows > kWaitingRows ? nullptr : first_weights(worker);
    const int64_t grain = first.sign.lanes != nullptr ? 1 : kRunGroups;
    worker.each(static_cast<int64_t>(tiles.size()) * tile_groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Tile& tile = tiles[static_cast<size_t>(i / tile_groups)];
        const float* tile_x = x + tile.first_row * x_stride;
        if (tile.sign.lanes != nullptr) {
          prepare_lanes(tile, tile_x, x_stride, i % tile_groups, bad_row);
          continue;
        }
        const int64_t group = i % tile_groups / tile.sign.rows, row = i % tile.sign.rows;
        if (weights != nullptr && row == 0) weights = ask_for(weights, kGroupAhead);
        const bool finite = tile.quantized
                                ? prepare_row(tile, tile_x, x_stride, row, group, quanta_of(tile, row, group))
                                : prepare_tables(tile, tile_x, x_stride, row, group);
        if (!finite) bad_row.note(tile.first_row + row);
      }
    });
  });
  for (Tile& tile : tiles) {
    tile.x = needs_padding_ ? tile.padded : rows + tile.first_row * rows_stride;
    tile.x_stride = needs_padding_ ? padded_columns(matrix_.columns()) : rows_stride;
  }
  return bad_row.found();
}

/// The lanes of one group, which are written for all rows of the tile at once.
void Linear::prepare_lanes(const Tile& tile, const float* x, int64_t x_stride, int64_t group,
                           LowestRow& bad_row) const {
  alignas(64) int16_t quanta[kMaxTileRows * kGroupColumns] = {};
  for (int row = 0; row < tile.sign.rows; ++row) {
    if (!prepare_row(tile, x, x_stride, row, group, quanta + row * kGroupColumns))
      bad_row.note(tile.first_row + row);
  }
  kernels_.build_lanes(quanta, tile.sign.lanes + group * kGroupColumns * kernels_.tile_rows);
}

/// Checks, pads and quantises one group of one row, as the matrix needs. Returns false if it is not finite.
bool Linear::prepare_row(const Tile& tile, const float* x, int64_t x_stride, int64_t row, int64_t group,
                         int16_t* quanta) const {
  const int64_t columns = matrix_.columns(), column = group * kGroupColumns;
  const int64_t count = std::min<int64_t>(kGroupColumns, columns - column);
  const float* values = x + row * x_stride + column;
  if (needs_padding_) {
    float* padded = tile.padded + row * padded_columns(columns) + column;
    std::memcpy(padded, values, static_cast<size_t>(count) * sizeof(float));
    for (int64_t c = count; c < padded_columns(count); ++c) padded[c] = 0.0f;
  }
  if (!needs_quanta_) return all_finite(values, count);
  return kernels_.quantize(values, static_cast<int>(count), quanta,
                           tile.sign.scales + group * tile.sign.rows + row);
}

/// The tables of one group of one row. Returns false if it is not finite.
bool Linear::prepare_tables(const Tile& tile, const float* x, int64_t x_stride, int64_t row,
                            int64_t group) const {
  alignas(64) int16_t quanta[kGroupColumns];
  if (!prepare_row(tile, x, x_stride, row, group, quanta)) return false;
  build_tables(tile, quanta, row, group);
  return true;
}

/// The same of what is quantised.
void Linear::build_tables(const Tile& tile, const int16_t* quanta, int64_t row, int64_t group) const {
  const int64_t i = group * tile.sign.rows + row;
  for (int bits = 1; bits <= 2; ++bits) {
    if (!needs_tables_[bits]) continue;
    const size_t table = static_cast<size_t>(i) * kernels_.table_bytes(tile.sign.rows, bits);
    kernels_.build_tables(tile.sign.rows, bits, quanta, tile.sign.tables[bits] + table,
                          tile.sign.offsets[bits] + 2 * i);
  }
}

/// The blocks of all parts are one list, so that a matrix costs one barrier; for SwiGLU a block of gate rows
/// and the block of up rows beside it are one item.
Linear::Items Linear::items() const {
  int64_t blocks = 0;
  for (const CpuMatrix::Part& part : matrix_.parts()) blocks += part.blocks();
  const int64_t of_item = activation_ == Activation::kSwiglu ? 2 : 1;
  return {blocks / of_item, of_item};
}

/// Items that a thread takes at a time at most. Many rows take a run's tables, or make some for it: the
/// longer, the better. Few wait for memory, whatever its length.
int64_t Linear::longest_run(const Items& items, int64_t rows, int threads) {
  const int64_t runs = rows <= kFewRows ? 4 : 2;  // of a thread
  return std::clamp<int64_t>(items.count / (runs * threads), 1, kRunBlocks);
}

Grain Linear::grain_for(const Items& items, const Tile& tile, int threads, const Input* next) const {
  int64_t most = longest_run(items, tile.sign.rows, threads);
  int64_t least = tile.sign.rows <= kFewRows ? 1 : std::max<int64_t>(1, most / 2);
  if (tile.sign.lanes != nullptr && least * items.blocks < kernels_.lane_blocks) least = most;
  // Whole groups of what the next operation reads.
  static_assert(kGroupColumns == 2 * kBlockRows && kRunBlocks % 4 == 0);
  if (next != nullptr) {
    least += least % 2;
    most += most % 2;
  }
  return {least, most};
}

/// Whether so many rows of the step go by lanes.
bool Linear::by_lanes(int64_t rows, int threads) const {
  const Items all = items();
  const int64_t blocks = longest_run(all, rows, threads) * all.blocks;
  return needs_quanta_ && rows > kernels_.table_rows &&
         std::min<int64_t>(blocks, kRunBlocks) >= kernels_.lane_blocks;
}

const uint8_t* Linear::first_weights(const Worker& worker) const {
  const Items all = items();
  const int64_t item = worker.first_item(all.count), block = item * all.blocks;
  const uint8_t* weights = nullptr;
  each_stretch(block, item < all.count ? block + 1 : block,
               [&](const Stretch& s) { weights = matrix_.parts()[s.part].block(s.block); });
  return weights;
}

/// Calls f(Stretch) for the blocks [begin, end) of the list. It has part after part; where blocks of two
/// parts alternate in memory, or SwiGLU takes them in pairs, they alternate in it, too.
template <class F>
void Linear::each_stretch(int64_t begin, int64_t end, F&& f) const {
  const auto& parts = matrix_.parts();
  const bool in_turn = one_stream_ || activation_ == Activation::kSwiglu;
  Stretch s{};
  for (int64_t i = begin; i < end; i += s.blocks) {
    s.part = in_turn ? static_cast<size_t>(i % 2) : 0;
    s.block = in_turn ? i / 2 : i;
    while (s.block >= parts[s.part].blocks()) s.block -= parts[s.part++].blocks();
    s.blocks = in_turn ? 1 : std::min(end - i, parts[s.part].blocks() - s.block);
    s.row = s.block * kBlockRows;
    s.rows = std::min(s.blocks * kBlockRows, parts[s.part].rows - s.row);
    s.at = (i - begin) * kBlockRows;
    f(s);
  }
}

/// Runs of a tile's items; of several tiles, one run after another is taken through all of them, so that its
/// weights are read once, and the threads end within one run of one tile of each other.
void Linear::multiply(ThreadPool& pool, std::span<const Tile> tiles, float* y, int64_t y_stride,
                      Input* next) const {
  const Items all = items();
  if (tiles.size() == 1) {
    const Grain grain = grain_for(all, tiles[0], pool.threads(), next);
    return pool.parallel([&](Worker& worker) {
      const Tile tile = tiles[0].quantized ? built_tile(tiles[0], worker) : tiles[0];
      worker.each(all.count, grain, [&](int64_t begin, int64_t end) {
        multiply_items(worker, begin, end, all.blocks, tile, y, y_stride, next);
      });
    });
  }
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t most = kRunBlocks / all.blocks,
                least = std::min<int64_t>(kernels_.lane_blocks / all.blocks, most);
  const int64_t run =
      std::clamp(all.count * count / (kTogetherRuns * pool.threads()), std::max<int64_t>(least, 1), most);
  const int64_t runs = (all.count + run - 1) / run;
  pool.parallel([&](Worker& worker) {
    worker.each(runs * count, {1, count}, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t item = i / count * run;
        multiply_items(worker, item, std::min(item + run, all.count), all.blocks,
                       tiles[static_cast<size_t>(i % count)], y, y_stride, nullptr);
      }
    });
  });
}

void Linear::multiply_items(const Worker& worker, int64_t first_item, int64_t last_item, int64_t item_blocks,
                            const Tile& tile, float* y, int64_t y_stride, Input* next) const {
  const auto& parts = matrix_.parts();
  float* sums = worker_sums(tile, worker);
  float* workspace = sums + sum_floats();
  float* out = y + tile.first_row * y_stride;
  const int64_t last = last_item * item_blocks;
  for (int64_t begin = first_item * item_blocks, end; begin < last; begin = end) {
    end = std::min(begin + kRunBlocks, last);
    multiply_blocks(begin, end, tile, sums, workspace);
    if (activation_ == Activation::kSwiglu) {
      const int64_t first = begin / 2 * kBlockRows;
      const int64_t count = std::min((end - begin) / 2 * kBlockRows, parts[0].rows - first);
      apply_swiglu(tile, sums, count);
      write(tile, sums, first, count, out, y_stride);
      for (int t = 0; next != nullptr && t < tile.sign.rows; ++t) next->prepare(t, first, count);
    } else {
      each_stretch(begin, end, [&](const Stretch& s) {
        write(tile, sums + s.at, parts[s.part].first_row + s.row, s.rows, out, y_stride);
      });
    }
  }
}

/// out[t][r], rows kSumStride apart, for the blocks [begin, end) of the list, 64 rows each, adapters and all;
/// of a stretch defined up to a multiple of 16 rows.
void Linear::multiply_blocks(int64_t begin, int64_t end, const Tile& tile, float* out,
                             float* workspace) const {
  if (tile.adapters == nullptr) return multiply_weights(begin, end, tile, out, workspace);
  // A few rows wait for memory: what the adapters add is computed while the weights of the next blocks come.
  const int64_t piece = tile.sign.rows > kWaitingRows ? end - begin : kFewBlocks;
  for (; begin < end; begin += piece, out += piece * kBlockRows) {
    const int64_t to = std::min(begin + piece, end);
    each_stretch(begin, to, [&](const Stretch& s) {
      tile.adapters->prefetch(tile.adapter_tile, s.part, s.row, s.rows);
    });
    multiply_weights(begin, to, tile, out, workspace);
    each_stretch(begin, to, [&](const Stretch& s) {
      tile.adapters->add(tile.adapter_tile, s.part, s.row, s.rows, out + s.at, kSumStride);
    });
  }
}

/// The same of the matrix alone.
void Linear::multiply_weights(int64_t begin, int64_t end, const Tile& tile, float* out,
                              float* workspace) const {
  if (one_stream_) {
    const CpuMatrix::Part& part = matrix_.parts()[static_cast<size_t>(begin % 2)];
    return kernels_.multiply_sign(part.type, part.block(begin / 2), end - begin, tile.sign, out, kSumStride,
                                  workspace);
  }
  each_stretch(begin, end, [&](const Stretch& s) {
    const CpuMatrix::Part& part = matrix_.parts()[s.part];
    float* sums = out + s.at;
    if (is_sign_type(part.type)) {
      return kernels_.multiply_sign(part.type, part.block(s.block), s.blocks, tile.sign, sums, kSumStride,
                                    workspace);
    }
    kernels_.multiply_float(part.type, part.block(s.block), part.row_stride, s.rows,
                            padded_columns(part.columns), tile.x, tile.x_stride, tile.sign.rows, sums,
                            kSumStride);
    for (int t = 0; t < tile.sign.rows; ++t) {
      for (int64_t r = s.rows; r % 16 != 0; ++r) sums[t * kSumStride + r] = 0.0f;
    }
  });
}

/// Of sums of gate and up, 64 rows each in turn, `count` values one after another; in place.
void Linear::apply_swiglu(const Tile& tile, float* sums, int64_t count) const {
  for (int t = 0; t < tile.sign.rows; ++t, sums += kSumStride) {
    for (int64_t r = 0; r < count; r += kBlockRows) {
      const float *gate = sums + 2 * r, *up = gate + kBlockRows;
      kernels_.swiglu(gate, up, std::min<int64_t>(kBlockRows, (count - r + 15) / 16 * 16), sums + r);
    }
  }
}

void Linear::write(const Tile& tile, const float* sums, int64_t first, int64_t count, float* y,
                   int64_t y_stride) const {
  for (int t = 0; t < tile.sign.rows; ++t) {
    const float* from = sums + t * kSumStride;
    float* to = y + t * y_stride + first;
    if (accumulate_) {
      for (int64_t r = 0; r < count; ++r) to[r] += from[r];
    } else {
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    }
  }
}

}  // namespace niwaki
