#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "niwaki/plan.h"

namespace niwaki {

/// The angles of a rotary embedding. Computed in double by our own code, rounded to float once, in no tier.
class Rope {
 public:
  /// Throws kInvalidArgument for a specification without meaning; `label` is for its message.
  Rope(const RopeSpec& spec, const std::string& label);

  /// cos (head_dim/2) | sin (head_dim/2) of a position, times the attention factor.
  void row(int64_t position, float* out) const;

  /// Radians per position, of dimension i < head_dim/2.
  const std::vector<double>& frequencies() const { return frequencies_; }
  /// On cos and sin.
  double factor() const { return factor_; }

 private:
  std::vector<double> frequencies_;
  double factor_;
};

}  // namespace niwaki
