#include "cpu/training/lora_parameters.h"

#include <cmath>
#include <cstring>

#include "cpu/double_math.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr int64_t kChunk = 4096;  // parameters that a thread takes at a time, whose squares are added alone

}  // namespace

size_t LoraParameters::add(int64_t rank, int64_t inputs, int64_t outputs) {
  const int64_t padded = (rank + 15) / 16 * 16;
  const size_t a = floats_, b = a + static_cast<size_t>(padded * inputs);
  adapters_.push_back({rank, padded, inputs, outputs, a, b});
  floats_ = b + static_cast<size_t>(padded * outputs);
  count_ += static_cast<size_t>(rank * (inputs + outputs));
  return adapters_.size() - 1;
}

void LoraParameters::reserve() {
  memory_ = PageMemory(4 * floats_ * sizeof(float), PageSize::kSmall, "adapters and their optimizer");
}

void LoraParameters::clear_gradients() {
  std::memset(gradients(), 0, floats_ * sizeof(float));
}

double LoraParameters::gradient_norm(ThreadPool& pool) const {
  const auto floats = static_cast<int64_t>(floats_);
  std::vector<double> squares(static_cast<size_t>((floats + kChunk - 1) / kChunk));
  const float* g = gradients();
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>(squares.size()), 1, [&](int64_t chunk, int64_t) {
      double sum = 0;
      for (int64_t i = chunk * kChunk; i < std::min(floats, (chunk + 1) * kChunk); ++i)
        sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
      squares[static_cast<size_t>(chunk)] = sum;
    });
  });
  double sum = 0;
  for (const double s : squares) sum += s;
  return std::sqrt(sum);
}

double LoraParameters::update(ThreadPool& pool, const AdamW& o) {
  const double norm = gradient_norm(pool);
  if (!std::isfinite(norm)) {
    clear_gradients();
    throw Error(ErrorCode::kNonFinite,
                "the gradients are NaN or infinite; try a lower learning rate or a longer warm-up");
  }
  const double step = static_cast<double>(o.step);
  const bool clip = o.max_gradient_norm > 0 && norm > o.max_gradient_norm;
  const auto scale = static_cast<float>(clip ? o.max_gradient_norm / norm : 1);
  const auto beta1 = static_cast<float>(o.beta1), rest1 = static_cast<float>(1 - o.beta1);
  const auto beta2 = static_cast<float>(o.beta2), rest2 = static_cast<float>(1 - o.beta2);
  // Moments start at 0, and these undo it.
  const double bias1 = o.beta1 > 0 ? 1 - natural_exp(step * natural_log(o.beta1)) : 1;
  const double bias2 = o.beta2 > 0 ? 1 - natural_exp(step * natural_log(o.beta2)) : 1;
  const auto rate = static_cast<float>(o.learning_rate / bias1);
  const auto root = static_cast<float>(1 / std::sqrt(bias2));
  const auto epsilon = static_cast<float>(o.epsilon);
  const auto keep = static_cast<float>(1 - o.learning_rate * o.weight_decay);
  float* p = values();
  float* g = gradients();
  float* m = array(TrainingState::kFirstMoments);
  float* v = array(TrainingState::kSecondMoments);
  pool.parallel([&](Worker& worker) {
    worker.each(static_cast<int64_t>(floats_), kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float gradient = g[i] * scale;
        m[i] = beta1 * m[i] + rest1 * gradient;
        v[i] = beta2 * v[i] + rest2 * gradient * gradient;
        p[i] = p[i] * keep - rate * m[i] / (std::sqrt(v[i]) * root + epsilon);
        g[i] = 0;
      }
    });
  });
  return norm;
}

std::vector<float> LoraParameters::read(TrainingState state) const {
  std::vector<float> values;
  values.reserve(count_);
  const float* from = array(state);
  for (const Adapter& adapter : adapters_) {
    for (int64_t k = 0; k < adapter.rank; ++k) {
      for (int64_t i = 0; i < adapter.inputs; ++i)
        values.push_back(from[adapter.a + static_cast<size_t>(i * adapter.padded_rank + k)]);
    }
    for (int64_t i = 0; i < adapter.outputs; ++i) {
      for (int64_t k = 0; k < adapter.rank; ++k)
        values.push_back(from[adapter.b + static_cast<size_t>(i * adapter.padded_rank + k)]);
    }
  }
  return values;
}

void LoraParameters::write(TrainingState state, std::span<const float> values) {
  if (values.size() != count_) {
    throw Error(ErrorCode::kInvalidArgument, "the adapters have " + std::to_string(count_) +
                                                 " parameters, got " + std::to_string(values.size()));
  }
  float* to = array(state);
  size_t at = 0;
  for (const Adapter& adapter : adapters_) {
    for (int64_t k = 0; k < adapter.rank; ++k) {
      for (int64_t i = 0; i < adapter.inputs; ++i)
        to[adapter.a + static_cast<size_t>(i * adapter.padded_rank + k)] = values[at++];
    }
    for (int64_t i = 0; i < adapter.outputs; ++i) {
      for (int64_t k = 0; k < adapter.rank; ++k)
        to[adapter.b + static_cast<size_t>(i * adapter.padded_rank + k)] = values[at++];
    }
  }
}

}  // namespace niwaki
