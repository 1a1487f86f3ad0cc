#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "niwaki/training.h"
#include "tests/tensors.h"

namespace niwaki::test {

/// A small random transformer for training, and its loss in double, written a second time and simply.
class TrainingModel {
 public:
  static constexpr int32_t kLayers = 2, kHidden = 128, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kFfn = 128;
  static constexpr int32_t kVocabulary = 70, kQ = kHeads * kHeadDim, kKv = kKvHeads * kHeadDim;
  static constexpr double kEps = 1e-6, kBase = 1e4;
  static constexpr QkvLayout kLayout{kHeads, kKvHeads, kHeadDim};

  explicit TrainingModel(DataType type, uint64_t seed = 1) : random_(seed), type_(type) {
    embedding_ = add_matrix("token_embd", {kVocabulary}, kHidden, 0.3f);
    for (Layer& layer : layers_) {
      layer.attn_norm = add_norm(kHidden);
      layer.qkv = add_matrix("qkv", {kQ, kKv, kKv}, kHidden, 0.1f);
      layer.q_norm = add_norm(kHeadDim);
      layer.k_norm = add_norm(kHeadDim);
      layer.output = add_matrix("output", {kHidden}, kQ, 0.1f);
      layer.ffn_norm = add_norm(kHidden);
      layer.gate_up = add_matrix("gate_up", {kFfn, kFfn}, kHidden, 0.1f);
      layer.down = add_matrix("down", {kHidden}, kFfn, 0.1f);
    }
    output_norm_ = add_norm(kHidden);
  }

  /// All seven projections of each layer are adapted; ranks differ, and one is over 16.
  TrainingSpec spec(ThreadPool& pool, const Tier& tier, int32_t max_rows) const {
    TrainingSpec spec{max_rows, max_rows, max_rows, kVocabulary, {kHeadDim, kBase}, {}, {}, -1};
    const auto buffer = [&](int64_t width, bool per_output = false) {
      spec.buffers.push_back({width, per_output});
      return static_cast<BufferId>(spec.buffers.size() - 1);
    };
    const auto pack_matrix = [&](const std::vector<Tensor>& tensors) {
      return pack(pool, tensors, tensors[0].columns, tier.linear.sign_order);
    };
    const auto norm = [](const std::vector<float>& w) { return std::make_shared<const Vector>("norm", w); };
    const auto add = [&](const std::string& label, TrainingOp op) {
      spec.ops.push_back({std::move(op), label});
    };
    const auto embedding = pack_matrix(embedding_);
    const float eps = static_cast<float>(kEps);
    BufferId hidden = buffer(kHidden);
    add("embed", EmbedOp{embedding, hidden});
    for (const Layer& w : layers_) {
      const BufferId normed = buffer(kHidden), qkv = buffer(kQ + 2 * kKv), qk = buffer(kQ + kKv),
                     attn = buffer(kQ), middle = buffer(kHidden), ffn_normed = buffer(kHidden),
                     gate_up = buffer(2 * kFfn), ffn = buffer(kFfn), next = buffer(kHidden);
      add("attn_norm", RmsNormOp{hidden, norm(w.attn_norm), normed, eps});
      add("qkv",
          LoraLinearOp{normed, pack_matrix(w.qkv), qkv, -1, {{0, 3, 2.0f}, {1, 4, 1.0f}, {2, 20, 0.5f}}});
      add("qk_norm", NormRopeOp{qkv, kLayout, norm(w.q_norm), norm(w.k_norm), qk, eps});
      add("attn", CausalAttentionOp{qk, qkv, kLayout, attn});
      add("output", LoraLinearOp{attn, pack_matrix(w.output), middle, hidden, {{0, 3, 2.0f}}});
      add("ffn_norm", RmsNormOp{middle, norm(w.ffn_norm), ffn_normed, eps});
      add("gate_up",
          LoraLinearOp{ffn_normed, pack_matrix(w.gate_up), gate_up, -1, {{0, 3, 2.0f}, {1, 2, 1.0f}}});
      add("swiglu", SwigluOp{gate_up, ffn});
      add("down", LoraLinearOp{ffn, pack_matrix(w.down), next, middle, {{0, 5, 1.5f}}});
      hidden = next;
    }
    const BufferId selected = buffer(kHidden, true), last = buffer(kHidden, true),
                   logits = buffer(kVocabulary, true);
    add("select", SelectOutputsOp{hidden, selected});
    add("output_norm", RmsNormOp{selected, norm(output_norm_), last, eps});
    add("lm_head", LoraLinearOp{last, embedding, logits, -1, {}});
    spec.logits = logits;
    return spec;
  }

  /// The loss of a batch with the adapters' parameters as TrainingPlan::read gives them.
  double loss(const TrainingBatch& batch, const std::vector<double>& parameters) const {
    double sum = 0;
    size_t first = 0, output = 0;
    for (const int32_t count : batch.sequences) {
      const size_t rows = static_cast<size_t>(count);
      Values hidden = forward({batch.tokens.begin() + static_cast<int64_t>(first),
                               batch.tokens.begin() + static_cast<int64_t>(first + rows)},
                              parameters);
      for (; output < batch.outputs.size() && static_cast<size_t>(batch.outputs[output]) < first + rows;
           ++output) {
        const size_t row = static_cast<size_t>(batch.outputs[output]) - first;
        Values x(hidden.begin() + static_cast<int64_t>(row * kHidden),
                 hidden.begin() + static_cast<int64_t>((row + 1) * kHidden));
        const Values logits = multiply(embedding_, rms_norm(x, output_norm_));
        double total = 0;
        for (const double logit : logits) total += std::exp(logit);
        sum += batch.weights[output] * (std::log(total) - logits[static_cast<size_t>(batch.targets[output])]);
      }
      first += rows;
    }
    return sum;
  }

 private:
  using Values = std::vector<double>;
  struct Layer {
    std::vector<float> attn_norm, q_norm, k_norm, ffn_norm;
    std::vector<Tensor> qkv, output, gate_up, down;
  };

  std::vector<float> add_norm(size_t n) {
    std::vector<float> w = random_.normals(n, 0.2f);
    for (float& v : w) v += 1;
    return w;
  }
  std::vector<Tensor> add_matrix(const std::string& name, std::vector<int64_t> rows, int64_t columns,
                                 float scale) {
    std::vector<Tensor> tensors;
    for (const int64_t r : rows) {
      Tensor tensor = random_tensor(type_, r, columns, random_.next(), name);
      const DataTypeInfo& t = info(type_);
      for (size_t i = 0; i < tensor.bytes.size(); i += static_cast<size_t>(t.block_bytes)) {
        const float value = scale * random_.normal();
        if (type_ == DataType::kF32) {
          std::memcpy(tensor.bytes.data() + i, &value, 4);
        } else {
          const uint16_t half = float_to_half(value);
          std::memcpy(tensor.bytes.data() + i, &half, 2);
        }
      }
      tensors.push_back(std::move(tensor));
    }
    return tensors;
  }

  static Values multiply(const std::vector<Tensor>& matrix, const Values& x) {
    const auto columns = static_cast<size_t>(matrix[0].columns), rows = x.size() / columns;
    size_t width = 0, output = 0;
    for (const Tensor& tensor : matrix) width += static_cast<size_t>(tensor.rows);
    Values y(rows * width), weights(columns);
    for (const Tensor& tensor : matrix) {
      for (int64_t o = 0; o < tensor.rows; ++o, ++output) {
        for (size_t c = 0; c < columns; ++c)
          weights[c] = static_cast<double>(tensor.weight(o, static_cast<int64_t>(c)));
        for (size_t r = 0; r < rows; ++r) {
          for (size_t c = 0; c < columns; ++c) y[r * width + output] += weights[c] * x[r * columns + c];
        }
      }
    }
    return y;
  }
  static Values rms_norm(const Values& x, const std::vector<float>& weight) {
    Values y(x.size());
    const size_t n = weight.size();
    for (size_t first = 0; first < x.size(); first += n) {
      double squares = 0;
      for (size_t i = 0; i < n; ++i) squares += x[first + i] * x[first + i];
      const double norm = std::sqrt(squares / static_cast<double>(n) + kEps);
      for (size_t i = 0; i < n; ++i) y[first + i] = x[first + i] / norm * weight[i];
    }
    return y;
  }
  static Values slice(const Values& x, size_t width, size_t first, size_t count) {
    Values y;
    for (size_t r = 0; r < x.size(); r += width)
      y.insert(y.end(), x.begin() + static_cast<int64_t>(r + first),
               x.begin() + static_cast<int64_t>(r + first + count));
    return y;
  }
  static void rotate(Values& x, size_t heads) {
    const size_t half = kHeadDim / 2, width = heads * kHeadDim;
    for (size_t at = 0; at < x.size(); at += kHeadDim) {
      const auto position = static_cast<double>(at / width);
      for (size_t i = 0; i < half; ++i) {
        const double angle = position * std::pow(kBase, -2.0 * static_cast<double>(i) / kHeadDim);
        const double a = x[at + i], b = x[at + half + i];
        x[at + i] = a * std::cos(angle) - b * std::sin(angle);
        x[at + half + i] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }
  static Values attention(const Values& q, const Values& k, const Values& v) {
    const size_t rows = q.size() / kQ;
    Values out(q.size());
    for (size_t h = 0; h < kHeads; ++h) {
      const size_t kv = h / (kHeads / kKvHeads) * kHeadDim;
      for (size_t r = 0; r < rows; ++r) {
        Values p;
        double total = 0;
        for (size_t s = 0; s <= r; ++s) {
          double score = 0;
          for (size_t i = 0; i < kHeadDim; ++i) score += q[r * kQ + h * kHeadDim + i] * k[s * kKv + kv + i];
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(kHeadDim))));
          total += p.back();
        }
        for (size_t s = 0; s <= r; ++s) {
          for (size_t i = 0; i < kHeadDim; ++i)
            out[r * kQ + h * kHeadDim + i] += p[s] / total * v[s * kKv + kv + i];
        }
      }
    }
    return out;
  }

  /// Hidden states of one sequence before the last norm.
  Values forward(const std::vector<int32_t>& tokens, const std::vector<double>& parameters) const {
    size_t at = 0;  // in the parameters
    const auto lora = [&](const Values& x, Values& y, size_t in, size_t width, size_t first, size_t out,
                          size_t rank, double scale) {
      const double* a = parameters.data() + at;
      const double* b = a + rank * in;
      at += rank * (in + out);
      for (size_t r = 0; r < x.size() / in; ++r) {
        for (size_t k = 0; k < rank; ++k) {
          double t = 0;
          for (size_t i = 0; i < in; ++i) t += a[k * in + i] * x[r * in + i];
          for (size_t o = 0; o < out; ++o) y[r * width + first + o] += scale * b[o * rank + k] * t;
        }
      }
    };
    const auto add = [](Values& sum, const Values& x) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += x[i];
    };
    Values hidden;
    for (const int32_t token : tokens) {
      for (int64_t i = 0; i < kHidden; ++i)
        hidden.push_back(static_cast<double>(embedding_[0].weight(token, i)));
    }
    constexpr size_t kWidth = kQ + 2 * kKv;
    for (const Layer& w : layers_) {
      const Values normed = rms_norm(hidden, w.attn_norm);
      Values qkv = multiply(w.qkv, normed);
      lora(normed, qkv, kHidden, kWidth, 0, kQ, 3, 2);
      lora(normed, qkv, kHidden, kWidth, kQ, kKv, 4, 1);
      lora(normed, qkv, kHidden, kWidth, kQ + kKv, kKv, 20, 0.5);
      Values q = rms_norm(slice(qkv, kWidth, 0, kQ), w.q_norm),
             k = rms_norm(slice(qkv, kWidth, kQ, kKv), w.k_norm);
      rotate(q, kHeads);
      rotate(k, kKvHeads);
      const Values attn = attention(q, k, slice(qkv, kWidth, kQ + kKv, kKv));
      Values output = multiply(w.output, attn);
      lora(attn, output, kQ, kHidden, 0, kHidden, 3, 2);
      add(hidden, output);
      const Values ffn_normed = rms_norm(hidden, w.ffn_norm);
      Values gate_up = multiply(w.gate_up, ffn_normed);
      lora(ffn_normed, gate_up, kHidden, 2 * kFfn, 0, kFfn, 3, 2);
      lora(ffn_normed, gate_up, kHidden, 2 * kFfn, kFfn, kFfn, 2, 1);
      Values gate = slice(gate_up, 2 * kFfn, 0, kFfn);
      const Values up = slice(gate_up, 2 * kFfn, kFfn, kFfn);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      Values down = multiply(w.down, gate);
      lora(gate, down, kFfn, kHidden, 0, kHidden, 5, 1.5);
      add(hidden, down);
    }
    return hidden;
  }

  Random random_;
  DataType type_;
  std::vector<Tensor> embedding_;
  Layer layers_[kLayers];
  std::vector<float> output_norm_;
};

}  // namespace niwaki::test
