#include "cpu/training/lora_linear.h"

#include <algorithm>
#include <string>

#include "cpu/linear_kernels.h"
#include "cpu/matrix.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr int64_t kRowGrain = 48;  // rows of x that a thread takes at a time where weights are small

int64_t padded(int64_t columns) {
  return (columns + 15) / 16 * 16;
}

/// Rows of x for each item of work, so that there are a few items for every thread; a multiple of the tiles.
int64_t rows_at_once(int64_t rows, int64_t blocks, int threads) {
  const int64_t chunks = std::clamp<int64_t>((4 * threads + blocks - 1) / blocks, 1, (rows + 95) / 96);
  return (rows + chunks - 1) / chunks;
}

/// Shares (block, rows of x) among the threads: f(block, first row, row count).
template <class F>
void share(Worker& worker, int64_t blocks, int64_t rows, F&& f) {
  const int64_t run = rows_at_once(rows, blocks, worker.count());
  const int64_t runs = (rows + run - 1) / run;
  worker.each(blocks * runs, 1, [&](int64_t item, int64_t) {
    const int64_t first = item % runs * run;
    f(item / runs, first, std::min(run, rows - first));
  });
}

/// [rows][padded rank] transposed, with 64 floats from line to line.
void transpose(const float* from, int64_t rows, int64_t rank, float* to) {
  for (int64_t k = 0; k < rank; ++k) {
    for (int64_t r = 0; r < rows; ++r) to[k * kPanelColumns + r] = from[r * rank + k];
  }
}

}  // namespace

LoraLinear::LoraLinear(const TrainingKernels& kernels, const CpuMatrix& matrix,
                       const std::vector<LoraSpec>& adapters, LoraParameters& parameters)
    : kernels_(kernels), matrix_(matrix), parameters_(parameters) {
  const auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error(ErrorCode::kInvalidArgument, what);
  };
  std::vector<bool> adapted(matrix.parts().size());
  for (const LoraSpec& spec : adapters) {
    const auto part = static_cast<size_t>(spec.part);
    require(spec.part >= 0 && part < adapted.size(), "there is no tensor " + std::to_string(spec.part));
    require(!adapted[part], "tensor " + std::to_string(spec.part) + " has two adapters");
    require(spec.rank >= 1 && spec.rank <= 1024,
            "a rank must be 1 to 1024, got " + std::to_string(spec.rank));
    adapted[part] = true;
    const int64_t first = matrix.parts()[part].first_row;
    const int64_t outputs = matrix.parts()[part].rows;
    require(outputs % 16 == 0, "an adapted tensor's rows must be a multiple of 16");
    branches_.push_back(
        {parameters.add(spec.rank, matrix.columns(), outputs), spec.part, first, kept_, spec.scale});
    kept_ += padded(spec.rank);
  }
}

int64_t LoraLinear::thread_floats() const {
  int64_t lines = kDepthRun;
  for (const Branch& branch : branches_)
    lines = std::max(lines, parameters_.adapters()[branch.index].padded_rank);
  return lines * kPanelColumns;
}

WeightBlock LoraLinear::block(size_t part, int64_t index) const {
  const CpuMatrix::Part& p = matrix_.parts()[part];
  const int64_t rows = std::min<int64_t>(kBlockRows, p.rows - index * kBlockRows);
  return {p.type, p.order, p.block(index), p.row_stride, rows};
}

void LoraLinear::forward(ThreadPool& pool, int64_t rows, Rows x, Rows y, bool accumulate, Rows kept,
                         const std::vector<float*>& scratch) const {
  if (!branches_.empty()) {
    pool.parallel([&](Worker& worker) {
      for (const Branch& branch : branches_) {
        const auto& adapter = parameters_.adapters()[branch.index];
        worker.each(rows, kRowGrain, [&](int64_t begin, int64_t end) {
          kernels_.multiply({x.data + begin * x.stride, x.stride, 1}, parameters_.values() + adapter.a,
                            adapter.padded_rank, end - begin, adapter.padded_rank, adapter.inputs, 1, false,
                            kept.data + begin * kept.stride + branch.first_kept, kept.stride);
        });
      }
    });
  }
  pool.parallel([&](Worker& worker) {
    float* panel = scratch[static_cast<size_t>(worker.index())];
    Rows out = y;
    for (size_t part = 0; part < matrix_.parts().size(); ++part) {
      const CpuMatrix::Part& p = matrix_.parts()[part];
      share(worker, p.blocks(), rows, [&](int64_t index, int64_t first, int64_t count) {
        forward_block(part, index, count, {x.data + first * x.stride, x.stride},
                      {out.data + first * out.stride, out.stride}, accumulate,
                      {kept.data + first * kept.stride, kept.stride}, panel);
      });
      out.data += p.rows;
    }
  });
}

void LoraLinear::forward_block(size_t part, int64_t index, int64_t rows, Rows x, Rows y, bool accumulate,
                               Rows kept, float* panel) const {
  const WeightBlock weights = block(part, index);
  const int64_t columns = padded(weights.rows);
  float* out = y.data + index * kBlockRows;
  for (int64_t first = 0; first < matrix_.columns(); first += kDepthRun) {
    const int64_t depth = std::min(kDepthRun, matrix_.columns() - first);
    kernels_.dequantize_transposed(weights, first, depth, panel);
    kernels_.multiply({x.data + first, x.stride, 1}, panel, kPanelColumns, rows, columns, depth, 1,
                      accumulate || first > 0, out, y.stride);
  }
  for (const Branch& branch : branches_) {
    if (branch.part != static_cast<int64_t>(part)) continue;
    const auto& adapter = parameters_.adapters()[branch.index];
    const int64_t rank = adapter.padded_rank;
    transpose(parameters_.values() + adapter.b + static_cast<size_t>(index * kBlockRows * rank), weights.rows,
              rank, panel);
    kernels_.multiply({kept.data + branch.first_kept, kept.stride, 1}, panel, kPanelColumns, rows, columns,
                      rank, branch.scale, true, out, y.stride);
  }
}

void LoraLinear::backward(ThreadPool& pool, int64_t rows, Rows x, Rows dy, Rows dx, bool accumulate,
                          Rows kept, Rows work, const std::vector<float*>& scratch) const {
  // work = scale B^T dy: the gradient of A x.
  if (!branches_.empty()) {
    pool.parallel([&](Worker& worker) {
      for (const Branch& branch : branches_) {
        const auto& adapter = parameters_.adapters()[branch.index];
        worker.each(rows, kRowGrain, [&](int64_t begin, int64_t end) {
          kernels_.multiply({dy.data + begin * dy.stride + branch.first_output, dy.stride, 1},
                            parameters_.values() + adapter.b, adapter.padded_rank, end - begin,
                            adapter.padded_rank, adapter.outputs, branch.scale, false,
                            work.data + begin * work.stride + branch.first_kept, work.stride);
        });
      }
    });
  }
  pool.parallel([&](Worker& worker) {
    for (const Branch& branch : branches_) {
      const auto& adapter = parameters_.adapters()[branch.index];
      const int64_t rank = adapter.padded_rank;
      const auto each_block = [&](int64_t count, const auto& f) {
        worker.each((count + kPanelColumns - 1) / kPanelColumns, 1, [&](int64_t index, int64_t) {
          const int64_t first = index * kPanelColumns;
          f(first, std::min(kPanelColumns, count - first));
        });
      };
      each_block(adapter.outputs, [&](int64_t first, int64_t count) {
        kernels_.multiply({dy.data + branch.first_output + first, 1, dy.stride},
                          kept.data + branch.first_kept, kept.stride, count, rank, rows, branch.scale, true,
                          parameters_.gradients() + adapter.b + static_cast<size_t>(first * rank), rank);
      });
      each_block(adapter.inputs, [&](int64_t first, int64_t count) {
        kernels_.multiply({x.data + first, 1, x.stride}, work.data + branch.first_kept, work.stride, count,
                          rank, rows, 1, true,
                          parameters_.gradients() + adapter.a + static_cast<size_t>(first * rank), rank);
      });
    }
    if (dx.data == nullptr) return;
    float* panel = scratch[static_cast<size_t>(worker.index())];
    const int64_t blocks = (matrix_.columns() + kPanelColumns - 1) / kPanelColumns;
    share(worker, blocks, rows, [&](int64_t index, int64_t first, int64_t count) {
      backward_columns(index * kPanelColumns, count, {dy.data + first * dy.stride, dy.stride},
                       {dx.data + first * dx.stride, dx.stride}, accumulate,
                       {work.data + first * work.stride, work.stride}, panel);
    });
  });
}

void LoraLinear::backward_columns(int64_t first, int64_t rows, Rows dy, Rows dx, bool accumulate, Rows work,
                                  float* panel) const {
  const int64_t columns = std::min(kPanelColumns, matrix_.columns() - first);
  bool add = accumulate;
  const float* from = dy.data;
  for (size_t part = 0; part < matrix_.parts().size(); ++part) {
    const CpuMatrix::Part& p = matrix_.parts()[part];
    for (int64_t row = 0; row < p.rows; row += kDepthRun) {
      const int64_t depth = std::min(kDepthRun, p.rows - row);
      for (int64_t r = 0; r < depth; r += kBlockRows) {
        kernels_.dequantize(block(part, (row + r) / kBlockRows), first, columns, panel + r * kPanelColumns);
      }
      kernels_.multiply({from + row, dy.stride, 1}, panel, kPanelColumns, rows, columns, depth, 1, add,
                        dx.data + first, dx.stride);
      add = true;
    }
    from += p.rows;
  }
  for (const Branch& branch : branches_) {
    const auto& adapter = parameters_.adapters()[branch.index];
    const int64_t rank = adapter.padded_rank;
    transpose(parameters_.values() + adapter.a + static_cast<size_t>(first * rank), columns, rank, panel);
    kernels_.multiply({work.data + branch.first_kept, work.stride, 1}, panel, kPanelColumns, rows, columns,
                      rank, 1, true, dx.data + first, dx.stride);
  }
}

}  // namespace niwaki
