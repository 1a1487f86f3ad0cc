#include "cpu/rope.h"

#include <algorithm>
#include <cmath>

#include "cpu/double_math.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

void require(bool ok, const std::string& label, const char* what, double got) {
  if (ok) return;
  throw Error(ErrorCode::kInvalidArgument, label + ": " + what + ", got " + std::to_string(got));
}

/// The dimension whose angle turns `rotations` times over the original context: d ln(L / (2 pi rotations)) /
/// (2 ln base).
double correction_dimension(const RopeSpec& spec, double rotations) {
  constexpr double kTwoPi = 0x1.921fb54442d18p+2;
  return spec.head_dim * natural_log(spec.original_context / (rotations * kTwoPi)) /
         (2 * natural_log(spec.base));
}

}  // namespace

Rope::Rope(const RopeSpec& spec, const std::string& label) : factor_(1) {
  require(spec.head_dim > 0 && spec.head_dim % 16 == 0, label,
          "RoPE's head_dim must be a positive multiple of 16", spec.head_dim);
  require(std::isfinite(spec.base) && spec.base > 1, label, "RoPE's base must be finite and over 1",
          spec.base);
  const bool scaled = spec.scaling != RopeScaling::kNone, yarn = spec.scaling == RopeScaling::kYarn;
  if (scaled)
    require(std::isfinite(spec.factor) && spec.factor > 0, label, "RoPE's factor must be over 0",
            spec.factor);
  if (yarn) {
    require(std::isfinite(spec.original_context) && spec.original_context > 0, label,
            "YaRN's original context must be over 0", spec.original_context);
    require(std::isfinite(spec.beta_fast) && spec.beta_fast > 0, label, "YaRN's beta_fast must be over 0",
            spec.beta_fast);
    require(std::isfinite(spec.beta_slow) && spec.beta_slow > 0, label, "YaRN's beta_slow must be over 0",
            spec.beta_slow);
    require(std::isfinite(spec.attention_factor) && spec.attention_factor > 0, label,
            "YaRN's attention factor must be over 0", spec.attention_factor);
    factor_ = spec.attention_factor;
  }

  double low = 0, high = 0;
  if (yarn) {
    const double last = spec.head_dim - 1;
    low = std::clamp(std::floor(correction_dimension(spec, spec.beta_fast)), 0.0, last);
    high = std::clamp(std::ceil(correction_dimension(spec, spec.beta_slow)), 0.0, last);
    if (low == high) high += 0.001;
  }
  frequencies_.resize(static_cast<size_t>(spec.head_dim / 2));
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / spec.head_dim;
    double frequency = natural_exp(exponent * natural_log(spec.base));
    if (yarn) {
      // 0 keeps the frequency, 1 divides it.
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequency = frequency / spec.factor * ramp + frequency * (1 - ramp);
    } else if (scaled) {
      frequency /= spec.factor;
    }
    frequencies_[i] = frequency;
  }
}

void Rope::row(int64_t position, float* out) const {
  const size_t half = frequencies_.size();
  for (size_t i = 0; i < half; ++i) {
    const SinCos angle = sin_cos_of_product(static_cast<double>(position), frequencies_[i]);
    out[i] = static_cast<float>(angle.cos * factor_);
    out[half + i] = static_cast<float>(angle.sin * factor_);
  }
}

}  // namespace niwaki
