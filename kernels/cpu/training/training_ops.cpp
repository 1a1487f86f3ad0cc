#include <cstring>

#include "cpu/linear.h"
#include "cpu/linear_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/training/training_kernels.h"
#include "cpu/training/training_plan.h"

// The operations of training, forward and back.

namespace niwaki {
namespace {

constexpr int64_t kRowGrain = 8;  // rows that a thread takes at a time

template <class F>  // void(int64_t row)
void each_row(ThreadPool& pool, int64_t rows, F&& f) {
  pool.parallel([&](Worker& worker) {
    worker.each(rows, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) f(row);
    });
  });
}

float* at(Rows rows, int64_t row) {
  return rows.data + row * rows.stride;
}
void copy(float* to, const float* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp&, const EmbedOp& op) {
  const Rows out = value(op.out);
  each_row(pool, row_count(op.out), [&](int64_t row) {
    copy_row(cpu_matrix(*op.table), batch_->tokens[static_cast<size_t>(row)], at(out, row));
  });
}

void CpuTrainingPlan::backward(ThreadPool&, const BoundOp&, const EmbedOp&) {}  // its table is frozen

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp&, const RmsNormOp& op) {
  const Rows in = value(op.in), out = value(op.out);
  each_row(pool, row_count(op.in), [&](int64_t row) {
    tier_.rows.rms_norm(at(in, row), op.weight->values().data(), op.eps, in.stride, at(out, row));
  });
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp& bound, const RmsNormOp& op) {
  const Rows x = value(op.in), dy = gradient(op.out), dx = gradient(op.in);
  each_row(pool, row_count(op.in), [&](int64_t row) {
    tier_.training.rms_norm_backward(at(x, row), op.weight->values().data(), op.eps, x.stride, at(dy, row),
                                     bound.accumulate, at(dx, row));
  });
}

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp& bound, const LoraLinearOp& op) {
  const Rows out = value(op.out);
  const int64_t rows = row_count(op.in);
  const bool add = op.residual >= 0;
  if (add) {
    const Rows from = value(op.residual);
    each_row(pool, rows, [&](int64_t row) { copy(at(out, row), at(from, row), out.stride); });
  }
  bound.linear->forward(pool, rows, value(op.in), out, add, {floats(bound.kept), bound.kept_stride},
                        scratch_);
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp& bound, const LoraLinearOp& op) {
  const Rows dx = bound.input_gradient ? gradient(op.in) : Rows{nullptr, 0};
  bound.linear->backward(pool, row_count(op.in), value(op.in), gradient(op.out), dx, bound.accumulate,
                         {floats(bound.kept), bound.kept_stride}, {floats(work_), bound.kept_stride},
                         scratch_);
}

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp&, const NormRopeOp& op) {
  const Rows in = value(op.qkv), out = value(op.out);
  const int64_t dim = op.layout.head_dim, heads = op.layout.heads + op.layout.kv_heads;
  each_row(pool, row_count(op.qkv), [&](int64_t row) {
    copy(at(out, row), at(in, row), heads * dim);
    for (int64_t h = 0; h < heads; ++h) {
      const Vector& norm = h < op.layout.heads ? *op.q_norm : *op.k_norm;
      tier_.rows.norm_rope(at(out, row) + h * dim, norm.values().data(), op.eps, rope(row),
                           op.layout.head_dim);
    }
  });
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp&, const NormRopeOp& op) {
  const Rows x = value(op.qkv), dy = gradient(op.out), dx = gradient(op.qkv);
  const int64_t dim = op.layout.head_dim, heads = op.layout.heads + op.layout.kv_heads;
  each_row(pool, row_count(op.qkv), [&](int64_t row) {
    for (int64_t h = 0; h < heads; ++h) {
      const Vector& norm = h < op.layout.heads ? *op.q_norm : *op.k_norm;
      tier_.training.norm_rope_backward(at(x, row) + h * dim, norm.values().data(), op.eps, rope(row),
                                        op.layout.head_dim, at(dy, row) + h * dim, at(dx, row) + h * dim);
    }
  });
}

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp& bound, const CausalAttentionOp& op) {
  bound.attention->forward(pool, sequences_, value(op.qk), value(op.qkv), value(op.out), scratch_);
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp& bound, const CausalAttentionOp& op) {
  bound.attention->backward(pool, sequences_, value(op.qk), value(op.qkv), gradient(op.out), gradient(op.qk),
                            gradient(op.qkv), scratch_);
}

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp&, const SwigluOp& op) {
  const Rows in = value(op.in), out = value(op.out);
  each_row(pool, row_count(op.in), [&](int64_t row) {
    const float* gate = at(in, row);
    tier_.linear.swiglu(gate, gate + out.stride, out.stride, at(out, row));
  });
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp&, const SwigluOp& op) {
  const Rows x = value(op.in), dy = gradient(op.out), dx = gradient(op.in);
  each_row(pool, row_count(op.in), [&](int64_t row) {
    const float* gate = at(x, row);
    float* dgate = at(dx, row);
    tier_.training.swiglu_backward(gate, gate + dy.stride, at(dy, row), dy.stride, dgate, dgate + dy.stride);
  });
}

void CpuTrainingPlan::forward(ThreadPool& pool, const BoundOp&, const SelectOutputsOp& op) {
  const Rows in = value(op.in), out = value(op.out);
  each_row(pool, row_count(op.out),
           [&](int64_t i) { copy(at(out, i), at(in, batch_->outputs[static_cast<size_t>(i)]), out.stride); });
}

void CpuTrainingPlan::backward(ThreadPool& pool, const BoundOp&, const SelectOutputsOp& op) {
  const Rows dy = gradient(op.out), dx = gradient(op.in);
  each_row(pool, row_count(op.in),
           [&](int64_t row) { std::memset(at(dx, row), 0, static_cast<size_t>(dx.stride) * sizeof(float)); });
  each_row(pool, row_count(op.out),
           [&](int64_t i) { copy(at(dx, batch_->outputs[static_cast<size_t>(i)]), at(dy, i), dx.stride); });
}

}  // namespace niwaki
