#include "cpu/training/training_check.h"

#include <cmath>
#include <string>

#include "cpu/matrix.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

void require(bool ok, const std::string& what) {
  if (!ok) throw Error(ErrorCode::kInvalidArgument, what);
}
std::string got(int64_t number) {
  return ", got " + std::to_string(number);
}

/// Checks one operation after another.
class Checker {
 public:
  explicit Checker(const TrainingSpec& spec) : spec_(spec), made_(spec.buffers.size()) {}

  void check(const TrainingOp& op) {
    const TrainingPorts ports = ports_of(op);
    require(exists(ports.out) && !made_[static_cast<size_t>(ports.out)],
            "it must write a buffer that nothing else writes");
    for (const BufferId in : ports.in)
      require(exists(in) && made_[static_cast<size_t>(in)], "it reads a buffer that nothing has written");
    std::visit([this](const auto& o) { check_widths(o); }, op);
    made_[static_cast<size_t>(ports.out)] = true;
    last_ = ports.out;
  }
  BufferId last() const { return last_; }
  bool exists(BufferId id) const { return id >= 0 && static_cast<size_t>(id) < made_.size(); }

 private:
  void check_widths(const EmbedOp& op) const {
    fits(op.out, op.table->columns());
    require(op.table->rows() >= spec_.vocabulary, "its table must have a row for every token");
    all_rows({op.out});
  }
  void check_widths(const RmsNormOp& op) const {
    const auto length = static_cast<int64_t>(op.weight->values().size());
    fits(op.in, length);
    fits(op.out, length);
    same_rows(op.in, op.out);
    sixteens(op.in);
  }
  void check_widths(const LoraLinearOp& op) const {
    fits(op.in, op.matrix->columns());
    fits(op.out, op.matrix->rows());
    same_rows(op.in, op.out);
    sixteens(op.in);
    if (op.out != spec_.logits) sixteens(op.out);
    for (const CpuMatrix::Part& part : cpu_matrix(*op.matrix).parts()) {
      require(part.first_row % 16 == 0,
              "stacked tensors must have multiples of 16 rows to be trained on" + got(part.first_row));
    }
    if (op.residual < 0) return;
    require(op.residual != op.in, "its residual must not be its input");
    fits(op.residual, op.matrix->rows());
    same_rows(op.residual, op.out);
  }
  void check_widths(const NormRopeOp& op) const {
    const QkvLayout& l = op.layout;
    heads_fit(l);
    fits(op.qkv, int64_t{l.heads + 2 * l.kv_heads} * l.head_dim);
    fits(op.out, int64_t{l.heads + l.kv_heads} * l.head_dim);
    all_rows({op.qkv, op.out});
    for (const auto& norm : {op.q_norm, op.k_norm})
      require(norm->values().size() == static_cast<size_t>(l.head_dim), "norms must be as long as a head");
  }
  void check_widths(const CausalAttentionOp& op) const {
    const QkvLayout& l = op.layout;
    heads_fit(l);
    fits(op.qk, int64_t{l.heads + l.kv_heads} * l.head_dim);
    fits(op.qkv, int64_t{l.heads + 2 * l.kv_heads} * l.head_dim);
    fits(op.out, int64_t{l.heads} * l.head_dim);
    all_rows({op.qk, op.qkv, op.out});
  }
  void check_widths(const SwigluOp& op) const {
    fits(op.in, 2 * width(op.out));
    same_rows(op.in, op.out);
    sixteens(op.out);
  }
  void check_widths(const SelectOutputsOp& op) const {
    fits(op.in, width(op.out));
    all_rows({op.in});
    require(buffer(op.out).per_output, "it must give output rows");
  }

  const BufferSpec& buffer(BufferId id) const { return spec_.buffers[static_cast<size_t>(id)]; }
  int64_t width(BufferId id) const { return buffer(id).width; }
  void fits(BufferId id, int64_t expected) const {
    require(width(id) == expected, "buffer " + std::to_string(id) + " must be " + std::to_string(expected) +
                                       " wide" + got(width(id)));
  }
  void sixteens(BufferId id) const {
    require(width(id) % 16 == 0, "widths must be multiples of 16 to be trained on" + got(width(id)));
  }
  void same_rows(BufferId a, BufferId b) const {
    require(buffer(a).per_output == buffer(b).per_output, "it must read and write the same rows");
  }
  void all_rows(std::initializer_list<BufferId> ids) const {
    for (const BufferId id : ids) require(!buffer(id).per_output, "it must work on all rows");
  }
  void heads_fit(const QkvLayout& l) const {
    require(l.head_dim == spec_.rope.head_dim && l.kv_heads >= 1 && l.heads % l.kv_heads == 0,
            "its heads do not fit each other or the rotary embedding");
  }

  const TrainingSpec& spec_;
  std::vector<bool> made_;
  BufferId last_ = -1;
};

}  // namespace

TrainingPorts ports_of(const TrainingOp& op) {
  struct Ports {
    TrainingPorts operator()(const EmbedOp& o) const { return {{}, o.out}; }
    TrainingPorts operator()(const RmsNormOp& o) const { return {{o.in}, o.out}; }
    TrainingPorts operator()(const LoraLinearOp& o) const {
      if (o.residual < 0) return {{o.in}, o.out};
      return {{o.in, o.residual}, o.out};
    }
    TrainingPorts operator()(const NormRopeOp& o) const { return {{o.qkv}, o.out}; }
    TrainingPorts operator()(const CausalAttentionOp& o) const { return {{o.qk, o.qkv}, o.out}; }
    TrainingPorts operator()(const SwigluOp& o) const { return {{o.in}, o.out}; }
    TrainingPorts operator()(const SelectOutputsOp& o) const { return {{o.in}, o.out}; }
  };
  return std::visit(Ports{}, op);
}

void check_training(const TrainingSpec& spec) {
  require(spec.max_rows >= 1, "a training plan must have at least one row" + got(spec.max_rows));
  require(spec.max_outputs >= 1 && spec.max_outputs <= spec.max_rows,
          "its output rows must be 1 to " + std::to_string(spec.max_rows) + got(spec.max_outputs));
  require(spec.max_sequence >= 1 && spec.max_sequence <= spec.max_rows,
          "the rows of a sequence must be 1 to " + std::to_string(spec.max_rows) + got(spec.max_sequence));
  require(spec.vocabulary >= 1, "its vocabulary must have at least one token" + got(spec.vocabulary));
  for (const BufferSpec& buffer : spec.buffers) {
    require(buffer.width >= 1 && buffer.width < int64_t{1} << 31,
            "the width of a buffer must be at least 1" + got(buffer.width));
  }
  Checker checker(spec);
  for (const LabeledTrainingOp& op : spec.ops) {
    try {
      checker.check(op.op);
    } catch (const Error& error) {
      throw Error(error.code, op.label + ": " + error.what());
    }
  }
  require(checker.exists(spec.logits) && checker.last() == spec.logits, "the logits must be made last");
  const BufferSpec& logits = spec.buffers[static_cast<size_t>(spec.logits)];
  require(logits.per_output && logits.width == spec.vocabulary,
          "the logits must be of the output rows and as wide as the vocabulary");
}

void check_training_batch(const TrainingSpec& spec, const TrainingBatch& batch) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  require(rows >= 1 && rows <= spec.max_rows, "a batch of this plan has 1 to " +
                                                  std::to_string(spec.max_rows) + " rows, got " +
                                                  std::to_string(rows));
  int64_t sum = 0;
  for (const int32_t count : batch.sequences) {
    require(count >= 1 && count <= spec.max_sequence, "a sequence of this plan has 1 to " +
                                                          std::to_string(spec.max_sequence) + " rows, got " +
                                                          std::to_string(count));
    sum += count;
  }
  require(sum == rows, "the rows of all sequences must be those of the batch");
  const auto token = [&](int32_t id) {
    require(id >= 0 && id < spec.vocabulary, "token " + std::to_string(id) + " is not in the vocabulary");
  };
  for (const int32_t id : batch.tokens) token(id);
  const size_t outputs = batch.outputs.size();
  require(outputs >= 1 && outputs <= static_cast<size_t>(spec.max_outputs),
          "a batch of this plan has 1 to " + std::to_string(spec.max_outputs) + " output rows, got " +
              std::to_string(outputs));
  require(batch.targets.size() == outputs && batch.weights.size() == outputs,
          "every output row has a target and a weight");
  int64_t last = -1;
  for (size_t i = 0; i < outputs; ++i) {
    require(batch.outputs[i] > last && batch.outputs[i] < rows,
            "output rows ascend and are rows of the batch");
    last = batch.outputs[i];
    token(batch.targets[i]);
    require(std::isfinite(batch.weights[i]), "weights are finite");
  }
}

}  // namespace niwaki
