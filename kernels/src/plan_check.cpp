#include "src/plan_check.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "niwaki/adapter.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

std::string number(int64_t n) {
  return std::to_string(n);
}

class PlanCheck {
 public:
  explicit PlanCheck(const PlanSpec& spec) : spec_(spec), written_(spec.buffers.size(), false) {}

  void run() {
    label_ = "plan";
    require(spec_.max_rows >= 1, "max_rows must be at least 1, got " + number(spec_.max_rows));
    require(spec_.max_outputs >= 1 && spec_.max_outputs <= spec_.max_rows,
            "max_outputs must be 1 to max_rows (" + number(spec_.max_rows) + "), got " +
                number(spec_.max_outputs));
    require(spec_.vocabulary >= 1, "vocabulary must be at least 1, got " + number(spec_.vocabulary));
    require(spec_.block_size >= 16 && spec_.block_size % 16 == 0,
            "block_size must be a positive multiple of 16, got " + number(spec_.block_size));
    for (size_t i = 0; i < spec_.buffers.size(); ++i) {
      const int64_t width = spec_.buffers[i].width;
      require(width >= 1 && width <= INT32_MAX, "buffer " + number(static_cast<int64_t>(i)) +
                                                    " must be 1 to 2147483647 wide, got " + number(width));
    }
    for (const LabeledOp& op : spec_.ops) {
      label_ = op.label;
      std::visit([this](const auto& o) { check(o); }, op.op);
    }
    label_ = "plan";
    const BufferSpec& logits = read(spec_.logits, "logits");
    require(logits.per_output, "the logits must be a buffer of output rows");
    require(logits.width == spec_.vocabulary, "the logits must be as wide as the vocabulary (" +
                                                  number(spec_.vocabulary) + "), got " +
                                                  number(logits.width));
  }

 private:
  void require(bool ok, const std::string& message) const {
    if (!ok) throw Error(ErrorCode::kInvalidArgument, label_ + ": " + message);
  }
  void width(const char* what, int64_t got, int64_t allowed) const {
    require(got == allowed, std::string(what) + " must be " + number(allowed) + " wide, got " + number(got));
  }
  const BufferSpec& buffer(BufferId id, const char* what) const {
    require(id >= 0 && static_cast<size_t>(id) < spec_.buffers.size(),
            std::string(what) + " is buffer " + number(id) + ", but the plan has " +
                number(static_cast<int64_t>(spec_.buffers.size())));
    return spec_.buffers[static_cast<size_t>(id)];
  }
  const BufferSpec& read(BufferId id, const char* what) const {
    const BufferSpec& found = buffer(id, what);
    require(written_[static_cast<size_t>(id)], std::string(what) + " is buffer " + number(id) +
                                                   ", which no operation before this one has written");
    return found;
  }
  const BufferSpec& write(BufferId id, const char* what) {
    const BufferSpec& found = buffer(id, what);
    written_[static_cast<size_t>(id)] = true;
    return found;
  }
  void per_row(const BufferSpec& found, const char* what) const {
    require(!found.per_output, std::string(what) + " must be a buffer of all rows, not of output rows");
  }
  void epsilon(float eps) const {
    require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got " + std::to_string(eps));
  }
  template <class T>
  const T& present(const std::shared_ptr<T>& pointer, const char* what) const {
    require(pointer != nullptr, std::string(what) + " is missing");
    return *pointer;
  }
  int64_t qkv_width(const QkvLayout& l) const {
    require(l.heads >= 1 && l.kv_heads >= 1 && l.heads % l.kv_heads == 0,
            "heads must be a multiple of kv_heads, got " + number(l.heads) + " and " + number(l.kv_heads));
    require(l.head_dim >= 16 && l.head_dim % 16 == 0,
            "head_dim must be a positive multiple of 16, got " + number(l.head_dim));
    return (int64_t{l.heads} + 2 * int64_t{l.kv_heads}) * l.head_dim;
  }
  void cache(const std::shared_ptr<KvCache>& kv, const QkvLayout& layout, int32_t layer) const {
    const KvShape& shape = present(kv, "the KV cache").shape();
    require(shape.kv_heads == layout.kv_heads && shape.head_dim == layout.head_dim,
            "the KV cache has " + number(shape.kv_heads) + " heads of " + number(shape.head_dim) +
                ", the layer " + number(layout.kv_heads) + " of " + number(layout.head_dim));
    require(shape.block_size == spec_.block_size, "the KV cache has blocks of " + number(shape.block_size) +
                                                      " tokens, the plan of " + number(spec_.block_size));
    require(layer >= 0 && layer < shape.layers,
            "layer must be 0 to " + number(shape.layers - 1) + ", got " + number(layer));
  }

  void check(const EmbedOp& op) {
    const Matrix& table = present(op.table, "the table");
    const BufferSpec& out = write(op.out, "out");
    per_row(out, "out");
    width("out", out.width, table.columns());
    require(table.rows() >= spec_.vocabulary, "the table must have a row for each of " +
                                                  number(spec_.vocabulary) + " tokens, got " +
                                                  number(table.rows()));
  }
  void check(const RopeTableOp& op) {
    const BufferSpec& out = write(op.out, "out");
    per_row(out, "out");
    width("out", out.width, op.rope.head_dim);
  }
  void check(const RmsNormOp& op) {
    const BufferSpec &in = read(op.in, "in"), &out = write(op.out, "out");
    width("out", out.width, in.width);
    width("weight", static_cast<int64_t>(present(op.weight, "weight").values().size()), in.width);
    require(in.per_output == out.per_output, "in and out must both be of all rows or of output rows");
    epsilon(op.eps);
  }
  void check(const LinearOp& op) {
    const Matrix& matrix = present(op.matrix, "the matrix");
    const BufferSpec& in = read(op.in, "in");
    if (op.accumulate) read(op.out, "out");
    const BufferSpec& out = write(op.out, "out");
    require(op.in != op.out, "in and out must be two buffers");
    require(in.per_output == out.per_output, "in and out must both be of all rows or of output rows");
    width("in", in.width, matrix.columns());
    if (op.activation == Activation::kSwiglu) {
      require(!op.accumulate, "SwiGLU cannot be accumulated");
      require(matrix.rows() % 2 == 0,
              "the matrix must be gate over up of equal rows, got " + number(matrix.rows()));
      width("out", out.width, matrix.rows() / 2);
    } else {
      width("out", out.width, matrix.rows());
    }
  }
  void check(const QkNormRopeOp& op) {
    const BufferSpec& qkv = read(op.qkv, "qkv");
    per_row(qkv, "qkv");
    width("qkv", qkv.width, qkv_width(op.layout));
    const BufferSpec& rope = read(op.rope, "rope");
    per_row(rope, "rope");
    width("rope", rope.width, op.layout.head_dim);
    width("q_norm", static_cast<int64_t>(present(op.q_norm, "q_norm").values().size()), op.layout.head_dim);
    width("k_norm", static_cast<int64_t>(present(op.k_norm, "k_norm").values().size()), op.layout.head_dim);
    epsilon(op.eps);
  }
  void check(const KvStoreOp& op) {
    const BufferSpec& qkv = read(op.qkv, "qkv");
    per_row(qkv, "qkv");
    width("qkv", qkv.width, qkv_width(op.layout));
    cache(op.kv, op.layout, op.layer);
  }
  void check(const PagedAttentionOp& op) {
    const BufferSpec& qkv = read(op.qkv, "qkv");
    per_row(qkv, "qkv");
    width("qkv", qkv.width, qkv_width(op.layout));
    const BufferSpec& out = write(op.out, "out");
    per_row(out, "out");
    width("out", out.width, int64_t{op.layout.heads} * op.layout.head_dim);
    require(op.qkv != op.out, "qkv and out must be two buffers");
    cache(op.kv, op.layout, op.layer);
  }
  void check(const SelectOutputsOp& op) {
    const BufferSpec &in = read(op.in, "in"), &out = write(op.out, "out");
    per_row(in, "in");
    require(out.per_output, "out must be a buffer of output rows");
    width("out", out.width, in.width);
  }

  const PlanSpec& spec_;
  std::vector<bool> written_;
  std::string label_;
};

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "step: " + message);
}

/// `what` is only built into a message when the value is out of range.
template <class T>
void in_range(const char* list, size_t index, const char* field, T got, bool ok, const char* allowed) {
  if (ok) return;
  refuse(std::string(list) + " " + std::to_string(index) + ": " + field + " must be " + allowed + ", got " +
         std::to_string(got));
}

void check_token(const char* list, size_t index, const char* field, int32_t token, int32_t vocabulary) {
  if (token >= 0 && token < vocabulary) return;
  refuse(std::string(list) + " " + std::to_string(index) + ": " + field + " must be 0 to " +
         number(vocabulary - 1) + ", got " + number(token));
}

void check_sample(const PlanSpec& spec, const Step& step, size_t i) {
  const SampleSpec& s = step.samples[i];
  if (s.output < 0 || static_cast<size_t>(s.output) >= step.outputs.size()) {
    refuse("sample " + std::to_string(i) + ": output must be an index into the step's " +
           std::to_string(step.outputs.size()) + " output rows, got " + number(s.output));
  }
  const auto finite = [](float x) { return std::isfinite(x); };
  in_range("sample", i, "temperature", s.temperature, finite(s.temperature) && s.temperature >= 0,
           "finite and at least 0");
  in_range("sample", i, "top_k", s.top_k, s.top_k >= 0, "at least 0");
  in_range("sample", i, "top_p", s.top_p, s.top_p >= 0 && s.top_p <= 1, "0 to 1");
  in_range("sample", i, "min_p", s.min_p, s.min_p >= 0 && s.min_p <= 1, "0 to 1");
  in_range("sample", i, "repetition_penalty", s.repetition_penalty,
           finite(s.repetition_penalty) && s.repetition_penalty > 0, "finite and over 0");
  in_range("sample", i, "presence_penalty", s.presence_penalty, finite(s.presence_penalty), "finite");
  in_range("sample", i, "frequency_penalty", s.frequency_penalty, finite(s.frequency_penalty), "finite");
  in_range("sample", i, "logprobs", s.logprobs, s.logprobs >= -1 && s.logprobs <= spec.vocabulary,
           "-1 to the vocabulary's size");
  for (const int32_t token : s.history)
    check_token("sample", i, "a token of history", token, spec.vocabulary);
  for (const int32_t token : s.stop_tokens) check_token("sample", i, "a stop token", token, spec.vocabulary);
  for (const auto& [token, bias] : s.bias) {
    check_token("sample", i, "a token of bias", token, spec.vocabulary);
    in_range("sample", i, "a bias", bias, bias < INFINITY, "finite or -infinity");
  }
}

/// Each sequence must have what a decode step of it needs.
void check_following(const Step& step) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) refuse("where steps follow, " + what);
  };
  const size_t sequences = step.sequences.size();
  require(!step.want_logits, "logits cannot be wanted");
  require(step.outputs.size() == sequences && step.samples.size() == sequences,
          "every sequence must have one output row and one sample");
  size_t end = 0;
  for (size_t i = 0; i < sequences; ++i) {
    const StepSequence& sequence = step.sequences[i];
    end += static_cast<size_t>(sequence.row_count);
    require(
        static_cast<size_t>(step.outputs[i]) + 1 == end && static_cast<size_t>(step.samples[i].output) == i,
        "output and sample " + std::to_string(i) + " must be of the last row of sequence " +
            std::to_string(i));
    require(step.samples[i].history.empty(),
            "samples cannot have a history, got one for sample " + std::to_string(i));
    require(sequence.context_length <= INT32_MAX - step.following, "positions must be below 2^31");
  }
}

void check_adapters(const Step& step, size_t i) {
  const std::vector<AdapterUse>& mix = step.sequences[i].adapters;
  if (mix.empty()) return;
  if (step.adapter_slots == nullptr)
    refuse("sequence " + std::to_string(i) + " has adapters, the step no slots");
  const int32_t slots = step.adapter_slots->spec().slots;
  in_range("sequence", i, "the length of its mix of adapters", mix.size(), mix.size() <= kMaxMix,
           ("at most " + number(kMaxMix)).c_str());
  for (const AdapterUse& use : mix) {
    in_range("sequence", i, "an adapter's slot", use.slot, use.slot >= 0 && use.slot < slots,
             ("0 to " + number(slots - 1)).c_str());
    in_range("sequence", i, "an adapter's weight", use.weight, std::isfinite(use.weight), "finite");
  }
}

}  // namespace

void check_plan(const PlanSpec& spec) {
  PlanCheck(spec).run();
}

int32_t kv_blocks(const PlanSpec& spec) {
  int32_t blocks = INT32_MAX;
  for (const LabeledOp& op : spec.ops) {
    if (const auto* store = std::get_if<KvStoreOp>(&op.op))
      blocks = std::min(blocks, store->kv->shape().blocks);
    if (const auto* attend = std::get_if<PagedAttentionOp>(&op.op))
      blocks = std::min(blocks, attend->kv->shape().blocks);
  }
  return blocks == INT32_MAX ? 0 : blocks;
}

void check_step(const PlanSpec& spec, const Step& step) {
  if (step.following < 0) refuse("following must be at least 0, got " + number(step.following));
  const size_t rows = step.tokens.size();
  if (rows < 1 || rows > static_cast<size_t>(spec.max_rows)) {
    refuse("must have 1 to " + number(spec.max_rows) + " rows, got " + std::to_string(rows));
  }
  for (size_t i = 0; i < rows; ++i) check_token("row", i, "token", step.tokens[i], spec.vocabulary);

  const int32_t blocks = kv_blocks(spec);
  size_t counted = 0;
  std::vector<int64_t> slots;
  slots.reserve(rows);
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const StepSequence& s = step.sequences[i];
    in_range("sequence", i, "row_count", s.row_count, s.row_count >= 1, "at least 1");
    in_range("sequence", i, "context_length", s.context_length, s.context_length >= s.row_count,
             "at least row_count");
    counted += static_cast<size_t>(s.row_count);
    check_adapters(step, i);
    if (counted > rows) break;
    if (blocks == 0) continue;
    const int64_t tokens = int64_t{s.context_length} + step.following;
    const auto needed = static_cast<size_t>((tokens + spec.block_size - 1) / spec.block_size);
    if (s.block_table.size() < needed) {
      refuse("sequence " + std::to_string(i) + ": block_table must have " + std::to_string(needed) +
             " blocks for " + number(tokens) + " tokens, got " + std::to_string(s.block_table.size()));
    }
    for (size_t b = 0; b < needed; ++b) {
      if (s.block_table[b] < 0 || s.block_table[b] >= blocks) {
        refuse("sequence " + std::to_string(i) + ": block_table[" + std::to_string(b) + "] must be 0 to " +
               number(blocks - 1) + ", got " + number(s.block_table[b]));
      }
    }
    for (int64_t p = s.context_length - s.row_count; p < tokens; ++p) {
      slots.push_back(int64_t{s.block_table[static_cast<size_t>(p / spec.block_size)]} * spec.block_size +
                      p % spec.block_size);
    }
  }
  if (counted != rows) {
    refuse("the row counts of its sequences must sum to its " + std::to_string(rows) + " rows, got " +
           (counted > rows ? "more" : std::to_string(counted)));
  }
  // Two rows of one slot would race.
  std::sort(slots.begin(), slots.end());
  const auto twice = std::adjacent_find(slots.begin(), slots.end());
  if (twice != slots.end()) {
    refuse("two rows write slot " + number(*twice % spec.block_size) + " of block " +
           number(*twice / spec.block_size));
  }

  if (step.outputs.size() > static_cast<size_t>(spec.max_outputs)) {
    refuse("must have at most " + number(spec.max_outputs) + " output rows, got " +
           std::to_string(step.outputs.size()));
  }
  for (size_t i = 0; i < step.outputs.size(); ++i) {
    const int32_t row = step.outputs[i];
    if (row < 0 || static_cast<size_t>(row) >= rows || (i > 0 && row <= step.outputs[i - 1])) {
      refuse("output rows must be ascending and 0 to " + std::to_string(rows - 1) + ", got " + number(row) +
             " at " + std::to_string(i));
    }
  }
  for (size_t i = 0; i < step.samples.size(); ++i) check_sample(spec, step, i);
  if (step.following != 0) check_following(step);
}

}  // namespace niwaki
