#include "cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/double_math.h"
#include "niwaki/error.h"

namespace niwaki {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every output bit depends on every input bit.
uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

double total(const std::vector<double>& sums) {
  double result = 0;
  for (const double sum : sums) result += sum;
  return result;
}

}  // namespace

double uniform_draw(uint64_t seed, uint64_t position) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  return static_cast<double>(mix(mix(seed + kGolden) + kGolden * (position + 1)) >> 11) * 0x1p-53;
}

SampleResult Sampler::sample(const RowKernels& kernels, const float* logits, int64_t vocabulary,
                             const SampleSpec& spec, int64_t position, const std::string& what) {
  bool finite;
  int64_t best = kernels.argmax(logits, vocabulary, &finite);
  if (!finite) throw Error(ErrorCode::kNonFinite, what + ": the logits hold NaN or infinity");
  SampleResult result{0, std::numeric_limits<float>::quiet_NaN(), {}};

  const float true_max = logits[best];
  const bool adjusts = !spec.bias.empty() ||
                       (!spec.history.empty() && (spec.repetition_penalty != 1 ||
                                                  spec.presence_penalty != 0 || spec.frequency_penalty != 0));
  const float* chosen_from = logits;
  if (adjusts) {
    adjust(spec, logits, vocabulary);
    if (spec.temperature == 0 && adjusted_value(best, logits) >= true_max) {
      // Nothing untouched is larger than the best, or as large with a lower id.
      best = best_of_adjusted(best, logits);
    } else {
      all_.assign(logits, logits + vocabulary);
      for (const auto& [token, value] : adjusted_) all_[static_cast<size_t>(token)] = value;
      chosen_from = all_.data();
      best = kernels.argmax(chosen_from, vocabulary, &finite);
      if (chosen_from[best] == -kInfinity) {
        throw Error(ErrorCode::kInvalidArgument, what + ": the logit biases ban every token");
      }
    }
  }
  result.token = spec.temperature == 0
                     ? static_cast<int32_t>(best)
                     : draw(kernels, chosen_from, vocabulary, chosen_from[best], spec, position);

  if (spec.logprobs >= 0) {
    sums_.resize(static_cast<size_t>((vocabulary + kSumRun - 1) / kSumRun));
    kernels.exp_weights(logits, vocabulary, true_max, 1, nullptr, sums_.data());
    const double log_total = natural_log(total(sums_));
    const auto logprob = [&](int32_t token) {
      return static_cast<float>(static_cast<double>(logits[token]) - static_cast<double>(true_max) -
                                log_total);
    };
    result.logprob = logprob(result.token);
    select_top(kernels, logits, vocabulary, spec.logprobs);
    for (const int32_t token : candidates_) result.top.push_back({token, logprob(token)});
  }
  return result;
}

void Sampler::adjust(const SampleSpec& spec, const float* logits, int64_t vocabulary) {
  adjusted_.clear();
  places_.resize(static_cast<size_t>(vocabulary));
  // What leaves the range of float stays its end: no penalty makes an infinity, and only a bias bans.
  const auto clamp = [](float x) {
    return std::clamp(x, std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max());
  };
  for (const auto& [token, bias] : spec.bias) {
    float& x = adjusted(token, logits);
    x = bias == -kInfinity || x == -kInfinity ? -kInfinity : clamp(x + bias);
  }

  history_.assign(spec.history.begin(), spec.history.end());
  std::sort(history_.begin(), history_.end());
  for (size_t i = 0; i < history_.size();) {
    const int32_t token = history_[i];
    size_t end = i;
    while (end < history_.size() && history_[end] == token) ++end;
    float& x = adjusted(token, logits);
    if (x != -kInfinity) {
      x = clamp(x > 0 ? x / spec.repetition_penalty : x * spec.repetition_penalty);
      x = clamp(x - spec.presence_penalty);
      x = clamp(x - clamp(spec.frequency_penalty * static_cast<float>(end - i)));
    }
    i = end;
  }
}

bool Sampler::is_adjusted(int64_t token) const {
  const size_t place = places_[static_cast<size_t>(token)];
  return place < adjusted_.size() && adjusted_[place].first == token;
}

float& Sampler::adjusted(int32_t token, const float* logits) {
  uint32_t& place = places_[static_cast<size_t>(token)];
  if (!is_adjusted(token)) {
    place = static_cast<uint32_t>(adjusted_.size());
    adjusted_.emplace_back(token, logits[token]);
  }
  return adjusted_[place].second;
}

float Sampler::adjusted_value(int64_t token, const float* logits) const {
  return is_adjusted(token) ? adjusted_[places_[static_cast<size_t>(token)]].second : logits[token];
}

int64_t Sampler::best_of_adjusted(int64_t best, const float* logits) const {
  float most = adjusted_value(best, logits);
  for (const auto& [token, value] : adjusted_) {
    if (value < most || (value == most && token > best)) continue;
    best = token;
    most = value;
  }
  return best;
}

void Sampler::select_top(const RowKernels& kernels, const float* logits, int64_t vocabulary, int64_t count) {
  count = std::min(count, vocabulary);
  candidates_.clear();
  if (count == 0) return;
  const auto before = [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  // Collect what is over the threshold; when the room is full, keep the best `count` and raise the threshold
  // to the last of them. Ids come ascending, so an equal value that comes later loses anyhow.
  const size_t room = static_cast<size_t>(std::min(std::max(4 * count, int64_t{512}), vocabulary + 16) + 16);
  float threshold = -kInfinity;
  candidates_.resize(room);
  size_t held = 0;
  for (int64_t begin = 0; begin < vocabulary;) {
    held += static_cast<size_t>(kernels.above(logits, vocabulary, threshold, &begin,
                                              candidates_.data() + held, static_cast<int64_t>(room - held)));
    if (held > static_cast<size_t>(count)) {
      std::nth_element(candidates_.begin(), candidates_.begin() + (count - 1),
                       candidates_.begin() + static_cast<int64_t>(held), before);
      held = static_cast<size_t>(count);
      threshold = logits[candidates_[held - 1]];
    }
  }
  candidates_.resize(held);
  std::sort(candidates_.begin(), candidates_.end(), before);
}

int32_t Sampler::draw(const RowKernels& kernels, const float* logits, int64_t vocabulary, float max,
                      const SampleSpec& spec, int64_t position) {
  const double uniform = uniform_draw(spec.seed, static_cast<uint64_t>(position));
  const bool limits_count = spec.top_k > 0 && spec.top_k < vocabulary;
  if (limits_count || spec.top_p < 1)
    return draw_from_candidates(kernels, logits, vocabulary, max, spec, uniform);

  // Over the whole vocabulary, in the order of ids.
  weights_.resize(static_cast<size_t>(vocabulary));
  sums_.resize(static_cast<size_t>((vocabulary + kSumRun - 1) / kSumRun));
  kernels.exp_weights(logits, vocabulary, max, spec.temperature, weights_.data(), sums_.data());
  const auto run_end = [&](size_t run) { return std::min((run + 1) * kSumRun, weights_.size()); };
  if (spec.min_p > 0) {
    for (size_t run = 0; run < sums_.size(); ++run) {
      double sum = 0;
      for (size_t i = run * kSumRun; i < run_end(run); ++i) {
        if (weights_[i] < spec.min_p) weights_[i] = 0;
        sum += static_cast<double>(weights_[i]);
      }
      sums_[run] = sum;
    }
  }
  double rest = uniform * total(sums_);
  size_t run = 0;
  while (run + 1 < sums_.size() && rest >= sums_[run]) rest -= sums_[run++];
  // Rounding may carry `rest` past the end of its run: then the last token that has any weight is taken.
  int64_t last = -1;
  for (; run < sums_.size(); ++run) {
    for (size_t i = run * kSumRun; i < run_end(run); ++i) {
      if (weights_[i] == 0) continue;
      last = static_cast<int64_t>(i);
      rest -= static_cast<double>(weights_[i]);
      if (rest < 0) return static_cast<int32_t>(i);
    }
  }
  while (last < 0 || weights_[static_cast<size_t>(last)] == 0) last = last < 0 ? vocabulary - 1 : last - 1;
  return static_cast<int32_t>(last);
}

int32_t Sampler::draw_from_candidates(const RowKernels& kernels, const float* logits, int64_t vocabulary,
                                      float max, const SampleSpec& spec, double uniform) {
  const auto weigh = [&] {
    weights_.resize(candidates_.size());
    sums_.resize((candidates_.size() + kSumRun - 1) / kSumRun);
    for (size_t i = 0; i < candidates_.size(); ++i) weights_[i] = logits[candidates_[i]];
    kernels.exp_weights(weights_.data(), static_cast<int64_t>(weights_.size()), max, spec.temperature,
                        weights_.data(), sums_.data());
  };
  /// How many candidates, from the most likely on, have the share top_p of `all`; 0 if these do not.
  const auto nucleus = [&](double all) -> size_t {
    double sum = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      sum += static_cast<double>(weights_[i]);
      if (sum >= static_cast<double>(spec.top_p) * all) return i + 1;
    }
    return 0;
  };

  size_t kept;
  if (spec.top_k > 0 && spec.top_k < vocabulary) {
    select_top(kernels, logits, vocabulary, spec.top_k);
    weigh();
    kept = spec.top_p < 1 ? nucleus(total(sums_)) : candidates_.size();
  } else {
    sums_.resize(static_cast<size_t>((vocabulary + kSumRun - 1) / kSumRun));
    kernels.exp_weights(logits, vocabulary, max, spec.temperature, nullptr, sums_.data());
    const double all = total(sums_);
    // The nucleus is small as a rule: look for it among few candidates first.
    int64_t count = 128;
    do {
      select_top(kernels, logits, vocabulary, count);
      weigh();
      kept = nucleus(all);
      count *= 8;
    } while (kept == 0 && count / 8 < vocabulary);
  }
  if (kept == 0) kept = candidates_.size();  // the sums of two orders may differ in the last place

  double all = 0;
  size_t end = 0;
  while (end < kept && (end == 0 || (weights_[end] > 0 && weights_[end] >= spec.min_p))) {
    all += static_cast<double>(weights_[end++]);
  }
  double rest = uniform * all;
  for (size_t i = 0; i < end; ++i) {
    rest -= static_cast<double>(weights_[i]);
    if (rest < 0) return candidates_[i];
  }
  return candidates_[end - 1];
}

}  // namespace niwaki
