#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "cpu/linear_kernels.h"
#include "cpu/lowest_row.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "cpu/tier.h"
#include "niwaki/plan.h"

namespace niwaki {

class RowAdapters;

/// x / sqrt(mean(x^2) + eps) * weight for every row, as RmsNormOp has it.
struct RowNorm {
  const float* weight;
  float eps;
};

/// y = W x (or y += W x) for the rows of a step: one linear operation of a plan, bound to a tier. The matrix
/// must outlive it.
class Linear {
 public:
  /// Throws kInvalidArgument if the activation is SwiGLU and the matrix is not two tensors of equal rows, or
  /// if it is packed for a tier of another order.
  Linear(const Tier& tier, const CpuMatrix& matrix, Activation activation, bool accumulate, int64_t max_rows);

  /// Up to so many rows of the step can take a norm on the way: every thread norms them for itself, which is
  /// sooner done than waiting for one that does it for all. Not for float tensors, which read x where it
  /// lies.
  static constexpr int kFewRows = 5;
  bool takes_norm() const { return !has_floats_; }

  /// On the same condition so few rows can come prepared by the operation before.
  class Input;
  bool takes_input() const { return !has_floats_; }

  /// Where a thread's share of the weights begins; null if it has none.
  const uint8_t* first_weights(const Worker& worker) const;

  /// Width of a row of y: the matrix's rows, or half of them for SwiGLU.
  int64_t out_columns() const;

  /// Bytes of scratch on a pool of that many threads; all the linear operations of a plan share one scratch,
  /// as they run one after another.
  size_t scratch_bytes(int threads) const;

  /// Runs on every thread of the pool, from inside a job. x is [rows, matrix columns], y is [rows,
  /// out_columns()]; strides are in floats, scratch is aligned to 64 bytes. Returns the lowest row whose
  /// activations are NaN or infinite (y is then unfinished), or -1. `adapters`, unless null, have begun
  /// this operation. With `norm`, for up to kFewRows rows, x is what is normed first. With `next`, of a
  /// SwiGLU of so few rows, y is prepared for the operation after this one.
  int64_t run(ThreadPool& pool, int64_t rows, const float* x, int64_t x_stride, float* y, int64_t y_stride,
              std::byte* scratch, RowAdapters* adapters = nullptr, const RowNorm* norm = nullptr,
              Input* next = nullptr) const;
  /// The same of rows that are prepared.
  int64_t run(ThreadPool& pool, const Input& input, float* y, int64_t y_stride) const;

 private:
  /// Some rows of the step, at most LinearKernels::tile_rows, made ready for the kernels.
  struct Tile {
    SignTile sign;
    const float* x;  // rows for the float kernels: zero padded to a multiple of 16 columns
    int64_t x_stride;
    float* padded;       // where they are padded, if they must be
    bool quantized;      // each thread builds tables of its own from the quanta
    int16_t* quanta;     // [groups][rows][kGroupColumns]
    std::byte* workers;  // Own::bytes for each thread
    int64_t first_row;
    RowAdapters* adapters;
    size_t adapter_tile;
    const RowNorm* norm;
  };
  /// Offsets into a thread's own scratch, of rows that it prepares itself: few, or as many as go by tables.
  struct Own {
    size_t scales = 0, tables[3]{}, offsets[3]{};
    size_t bytes = 0;  // of all its scratch
  };
  /// Tiles that are prepared in one phase and multiplied in the next.
  static constexpr size_t kMostTiles = 32;
  struct Tiles {
    size_t count = 0;
    Tile list[kMostTiles];
    std::span<Tile> all() { return {list, count}; }
  };
  /// Blocks of one part that follow one another in the list of all blocks.
  struct Stretch {
    size_t part;
    int64_t block, blocks;
    int64_t row, rows;  // of the part, whose last block may be short
    int64_t at;         // rows of the list before it
  };
  /// What threads share: blocks of the list, or pairs of them.
  struct Items {
    int64_t count;
    int64_t blocks;  // of an item
  };
  bool has_lanes() const { return needs_quanta_ && tile_rows_ > kernels_.table_rows; }
  bool by_lanes(int64_t rows, int threads) const;
  bool go_together(int64_t rows) const;
  int64_t rows_of_tile(int64_t left) const;
  const Own& own_of(int threads) const;
  size_t largest_tables(int bits, size_t most_rows) const;
  size_t sum_floats() const;
  size_t workspace_floats() const;
  size_t normed_floats() const;
  std::byte* worker_scratch(const Tile& tile, const Worker& worker) const;
  float* worker_sums(const Tile& tile, const Worker& worker) const;
  float* worker_normed(const Tile& tile, const Worker& worker) const;
  Tile tile_of(int64_t first_row, int64_t rows, std::byte* scratch, size_t index = 0) const;
  int64_t run_alone(ThreadPool& pool, const Tile& tile, const float* x, int64_t x_stride, float* y,
                    int64_t y_stride, Input* next) const;
  const float* norm_rows(const Tile& tile, const Worker& worker, const float* x, int64_t x_stride,
                         LowestRow& bad_row) const;
  int64_t normed_stride() const { return groups_ * kGroupColumns; }
  Tile own_tile(const Tile& tile, const Worker& worker) const;
  Tile built_tile(const Tile& tile, const Worker& worker) const;
  static int16_t* quanta_of(const Tile& tile, int64_t row, int64_t group);
  int64_t prepare(ThreadPool& pool, const float* x, int64_t x_stride, std::span<Tile> tiles) const;
  void prepare_lanes(const Tile& tile, const float* x, int64_t x_stride, int64_t group,
                     LowestRow& bad_row) const;
  bool prepare_row(const Tile& tile, const float* x, int64_t x_stride, int64_t row, int64_t group,
                   int16_t* quanta) const;
  bool prepare_tables(const Tile& tile, const float* x, int64_t x_stride, int64_t row, int64_t group) const;
  void build_tables(const Tile& tile, const int16_t* quanta, int64_t row, int64_t group) const;
  Items items() const;
  static int64_t longest_run(const Items& items, int64_t rows, int threads);
  Grain grain_for(const Items& items, const Tile& tile, int threads, const Input* next) const;
  template <class F>
  void each_stretch(int64_t begin, int64_t end, F&& f) const;
  void multiply(ThreadPool& pool, std::span<const Tile> tiles, float* y, int64_t y_stride, Input* next) const;
  void multiply_items(const Worker& worker, int64_t first_item, int64_t last_item, int64_t item_blocks,
                      const Tile& tile, float* y, int64_t y_stride, Input* next) const;
  void multiply_blocks(int64_t begin, int64_t end, const Tile& tile, float* out, float* workspace) const;
  void multiply_weights(int64_t begin, int64_t end, const Tile& tile, float* out, float* workspace) const;
  void apply_swiglu(const Tile& tile, float* sums, int64_t count) const;
  void write(const Tile& tile, const float* sums, int64_t first, int64_t count, float* y,
             int64_t y_stride) const;

  const LinearKernels& kernels_;
  const RowKernels& row_kernels_;
  const CpuMatrix& matrix_;
  Activation activation_;
  bool accumulate_;
  bool one_stream_;         // the blocks of the two parts alternate in memory
  int tile_rows_;           // rows of the step that are multiplied together at most
  size_t most_tiles_ = 1;   // that are prepared together
  size_t tile_bytes_ = 0;   // of scratch, of one of them
  int64_t groups_;          // of activations, the last may be short
  bool needs_tables_[3]{};  // by weight bits
  bool needs_quanta_ = false;
  bool has_floats_ = false;
  bool needs_padding_ = false;  // float rows that end inside 16 columns

  // Offsets into scratch, which begins with each tile's own: scales, lanes and padded rows.
  size_t scales_ = 0, lanes_ = 0, padded_ = 0, tables_[3]{}, offsets_[3]{}, quanta_ = 0, workers_ = 0;
  Own own_few_, own_;
};

/// Few rows of x, quantised by the threads that write them while they have them at hand. The tables, several
/// times as large, every thread builds for itself: else they came from another core. Only where the operation
/// takes_input(), and without adapters, which need all of x.
class Linear::Input {
 public:
  /// `rows` <= kFewRows; strides and scratch, which no operation that runs meanwhile may use, are as for
  /// `run`.
  Input(const Linear& linear, int64_t rows, const float* x, int64_t x_stride, std::byte* scratch);

  /// By the thread that has written `count` columns of a row from `first` on, a multiple of kGroupColumns, as
  /// is `count` unless they end with the row.
  void prepare(int64_t row, int64_t first, int64_t count);

 private:
  friend class Linear;
  const Linear& linear_;
  const float* x_;
  const int64_t x_stride_;
  Tile tile_;
  LowestRow bad_row_;
};

/// One row of a matrix, or of one of its parts, as floats (an embedding): columns() values.
void copy_row(const CpuMatrix& matrix, int64_t row, float* out);
void copy_row(const CpuMatrix::Part& part, int64_t row, float* out);

}  // namespace niwaki
