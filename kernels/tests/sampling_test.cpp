#include "cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "cpu/tier.h"
#include "niwaki/error.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki;
using niwaki::test::Random;

namespace {

const RowKernels& best() {
  return available_tiers().front()->rows;
}

SampleResult sample(const std::vector<float>& logits, const SampleSpec& spec, int64_t position = 0,
                    const RowKernels& kernels = best()) {
  static Sampler sampler;  // reused, as a thread does
  return sampler.sample(kernels, logits.data(), static_cast<int64_t>(logits.size()), spec, position,
                        "sample 0");
}

std::vector<float> naive_adjusted(std::vector<float> x, const SampleSpec& spec) {
  for (const auto& [token, bias] : spec.bias) x[static_cast<size_t>(token)] += bias;
  std::map<int32_t, int> counts;
  for (const int32_t token : spec.history) ++counts[token];
  for (const auto& [token, count] : counts) {
    float& v = x[static_cast<size_t>(token)];
    v = v > 0 ? v / spec.repetition_penalty : v * spec.repetition_penalty;
    v -= spec.presence_penalty + spec.frequency_penalty * static_cast<float>(count);
  }
  return x;
}

/// Tokens that are left and their probabilities, in the order of a full sort.
std::vector<std::pair<int32_t, double>> naive_distribution(const std::vector<float>& logits,
                                                           const SampleSpec& spec) {
  const std::vector<float> x = naive_adjusted(logits, spec);
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  const double max = x[static_cast<size_t>(order[0])];
  if (spec.top_k > 0 && static_cast<size_t>(spec.top_k) < order.size())
    order.resize(static_cast<size_t>(spec.top_k));
  std::vector<std::pair<int32_t, double>> left;
  double sum = 0;
  for (const int32_t token : order) {
    left.emplace_back(
        token, std::exp((x[static_cast<size_t>(token)] - max) / static_cast<double>(spec.temperature)));
    sum += left.back().second;
  }
  if (spec.top_p < 1) {
    double share = 0;
    size_t kept = 0;
    while (kept < left.size() && (kept == 0 || share < spec.top_p * sum)) share += left[kept++].second;
    left.resize(kept);
  }
  std::erase_if(left, [&](const auto& entry) { return entry.second < spec.min_p || entry.second == 0; });
  sum = 0;
  for (const auto& entry : left) sum += entry.second;
  for (auto& entry : left) entry.second /= sum;
  return left;
}

/// Draws at many positions and compares the counts with the exact probabilities.
void check_distribution(const std::vector<float>& logits, SampleSpec spec, const char* name) {
  const int draws = 20'000;
  spec.seed = 12345;
  const auto exact = naive_distribution(logits, spec);
  std::map<int32_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[sample(logits, spec, i).token];
  double chi_square = 0;
  int counted = 0;
  for (const auto& [token, probability] : exact) {
    const double expected = probability * draws;
    counted += counts[token];
    if (expected > 5) chi_square += (counts[token] - expected) * (counts[token] - expected) / expected;
  }
  const auto freedom = static_cast<double>(exact.size());
  CHECK(counted == draws);  // nothing that a filter removes is ever drawn
  CHECK(chi_square < freedom + 5 * std::sqrt(2 * freedom) + 5);
  if (counted != draws || chi_square >= freedom + 5 * std::sqrt(2 * freedom) + 5) {
    std::printf("  %s: chi-square %g at %g, %d of %d\n", name, chi_square, freedom, counted, draws);
  }
}

template <class F>
bool throws(ErrorCode code, const char* text, F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code == code && std::string(error.what()).find(text) != std::string::npos;
  }
  return false;
}

}  // namespace

TEST(greedy_takes_the_first_of_the_largest) {
  CHECK(sample({1, 3, 2, 3}, {}).token == 1);
  CHECK(sample({-5}, {}).token == 0);
  CHECK(std::isnan(sample({1, 2}, {}).logprob));
  CHECK(sample({1, 2}, {}).top.empty());
}

TEST(temperature_follows_the_softmax) {
  Random random(1);
  const std::vector<float> logits = random.normals(40, 2);
  for (const float temperature : {0.3f, 1.0f, 2.5f}) {
    SampleSpec spec;
    spec.temperature = temperature;
    check_distribution(logits, spec, "temperature");
  }
  SampleSpec spec;
  spec.temperature = 1.5f;
  check_distribution(random.normals(3000, 1), spec, "several runs of sums");
}

TEST(every_filter_alone_and_together) {
  Random random(2);
  for (const size_t vocabulary : {30u, 700u}) {
    const std::vector<float> logits = random.normals(vocabulary, 2);
    SampleSpec plain;
    plain.temperature = 0.9f;
    SampleSpec top_k = plain, top_p = plain, min_p = plain, all = plain;
    top_k.top_k = 7;
    top_p.top_p = 0.8f;
    min_p.min_p = 0.05f;
    all.top_k = 20;
    all.top_p = 0.9f;
    all.min_p = 0.02f;
    check_distribution(logits, top_k, "top-k");
    check_distribution(logits, top_p, "top-p");
    check_distribution(logits, min_p, "min-p");
    check_distribution(logits, all, "all");
    top_k.top_k = 1;
    CHECK(sample(logits, top_k).token == sample(logits, {}).token);
    top_p.top_p = 0;
    CHECK(sample(logits, top_p).token == sample(logits, {}).token);
    min_p.min_p = 1;
    CHECK(sample(logits, min_p).token == sample(logits, {}).token);
  }
}

TEST(penalties_and_biases) {
  Random random(3);
  const std::vector<float> logits = random.normals(25, 1.5);
  SampleSpec plain;
  plain.temperature = 1;
  plain.history = {3, 7, 3, 3, 11, 24, 0};
  SampleSpec repetition = plain, presence = plain, frequency = plain, bias = plain, all = plain;
  repetition.repetition_penalty = 1.8f;
  presence.presence_penalty = 1.2f;
  frequency.frequency_penalty = 0.7f;
  bias.bias = {{4, 2.5f}, {5, -3.0f}, {6, -INFINITY}};
  all.repetition_penalty = 1.3f;
  all.presence_penalty = -0.5f;
  all.frequency_penalty = 0.4f;
  all.bias = {{3, 1.0f}, {8, -INFINITY}};
  all.top_k = 15;
  check_distribution(logits, repetition, "repetition");
  check_distribution(logits, presence, "presence");
  check_distribution(logits, frequency, "frequency");
  check_distribution(logits, bias, "bias");
  check_distribution(logits, all, "all");

  SampleSpec greedy;
  greedy.bias = {{0, -INFINITY}};
  CHECK(sample({9, 3, 4}, greedy).token == 2);
  greedy.bias = {{1, 100.0f}};
  CHECK(sample({9, 3, 4}, greedy).token == 1);
  greedy.bias = {{1, 3e38f}, {1, 3e38f}};
  CHECK(sample({9, 3e38f, 4}, greedy).token == 1);  // no infinity
}

TEST(greedy_takes_the_first_of_the_largest_adjusted_logits) {
  Random random(11);
  int raised = 0, lowered = 0;
  for (int i = 0; i < 2000; ++i) {
    const int64_t vocabulary = 1 + random.below(40);
    const auto token = [&] { return static_cast<int32_t>(random.below(vocabulary)); };
    std::vector<float> logits(static_cast<size_t>(vocabulary));
    for (float& x : logits) x = static_cast<float>(random.below(7) - 3);  // ties, which halves keep
    SampleSpec spec;
    spec.presence_penalty = static_cast<float>(random.below(5) - 2) / 2;
    spec.repetition_penalty = random.below(2) == 0 ? 1.0f : 2.0f;
    for (int64_t n = random.below(6); n > 0; --n) spec.history.push_back(token());
    for (int64_t n = random.below(6); n > 0; --n) {
      const float by = static_cast<float>(random.below(9) - 4) / 2;
      spec.bias.emplace_back(token(), vocabulary > 6 && by == -2 ? -INFINITY : by);
    }
    const std::vector<float> x = naive_adjusted(logits, spec);
    const auto expected = std::max_element(x.begin(), x.end()) - x.begin();
    const auto before = std::max_element(logits.begin(), logits.end()) - logits.begin();
    raised += expected != before && x[static_cast<size_t>(before)] == logits[static_cast<size_t>(before)];
    lowered += x[static_cast<size_t>(before)] < logits[static_cast<size_t>(before)];
    CHECK(sample(logits, spec).token == expected);
  }
  CHECK(raised > 200 && lowered > 200);
}

TEST(a_ban_of_everything_is_an_error) {
  SampleSpec spec;
  spec.bias = {{0, -INFINITY}, {1, -INFINITY}};
  for (const float temperature : {0.0f, 1.0f}) {
    spec.temperature = temperature;
    CHECK(throws(ErrorCode::kInvalidArgument, "sample 0", [&] { sample({1, 2}, spec); }));
    CHECK(sample({1, 2, -50}, spec).token == 2);
  }
}

TEST(logits_that_are_not_finite_are_an_error) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    CHECK(throws(ErrorCode::kNonFinite, "sample 0", [&] { sample({1, bad, 2}, {}); }));
  }
}

TEST(log_probabilities_are_of_the_unmodified_logits) {
  Random random(4);
  std::vector<float> logits = random.normals(5000, 3);
  logits[10] = logits[4000] = logits[2000];  // a tie
  double max = *std::max_element(logits.begin(), logits.end()), sum = 0;
  for (const float x : logits) sum += std::exp(x - max);
  SampleSpec spec;
  spec.temperature = 0.5f;
  spec.logprobs = 4999;
  spec.bias = {{77, 100.0f}};
  const SampleResult result = sample(logits, spec);
  CHECK(result.token == 77);
  CHECK(std::fabs(result.logprob - (logits[77] - max - std::log(sum))) < 1e-5);
  CHECK(result.top.size() == 4999);
  for (size_t i = 0; i < result.top.size(); ++i) {
    const auto& [token, logprob] = result.top[i];
    CHECK(std::fabs(logprob - (logits[static_cast<size_t>(token)] - max - std::log(sum))) < 1e-5);
    if (i == 0) continue;
    const float before = logits[static_cast<size_t>(result.top[i - 1].token)],
                here = logits[static_cast<size_t>(token)];
    CHECK(before > here || (before == here && result.top[i - 1].token < token));
  }
  spec.logprobs = 0;
  CHECK(sample(logits, spec).top.empty());
  CHECK(sample(logits, spec).logprob == result.logprob);
}

TEST(a_large_vocabulary_agrees_with_a_full_sort) {
  Random random(5);
  for (const float spread : {0.5f, 2.0f, 6.0f}) {
    std::vector<float> logits = random.normals(151'669, spread);
    for (float& x : logits) x = std::round(x * 64) / 64;  // ties everywhere
    for (const int32_t top_k : {1, 40, 600}) {
      SampleSpec spec;
      spec.temperature = 1;
      spec.top_k = top_k;
      spec.seed = 99;
      const auto exact = naive_distribution(logits, spec);
      for (int position = 0; position < 8; ++position) {
        double rest = uniform_draw(spec.seed, static_cast<uint64_t>(position));
        size_t i = 0;
        while (i + 1 < exact.size() && (rest -= exact[i].second) >= 0) ++i;
        CHECK(sample(logits, spec, position).token == exact[i].first);
      }
    }
    SampleSpec spec;
    spec.temperature = 1;
    spec.top_p = 0.95f;
    const auto exact = naive_distribution(logits, spec);
    for (int position = 0; position < 4; ++position) {
      double rest = uniform_draw(0, static_cast<uint64_t>(position));
      size_t i = 0;
      while (i + 1 < exact.size() && (rest -= exact[i].second) >= 0) ++i;
      // Sums of float weights differ from those of doubles in the seventh digit: a neighbour may be hit.
      const float got = logits[static_cast<size_t>(sample(logits, spec, position).token)];
      CHECK(std::fabs(got - logits[static_cast<size_t>(exact[i].first)]) <= 1.0f / 64);
    }
  }
}

TEST(seed_and_position_alone_decide) {
  Random random(6);
  const std::vector<float> logits = random.normals(2000, 1);
  SampleSpec specs[4];
  for (SampleSpec& spec : specs) spec.temperature = 1, spec.seed = 5, spec.logprobs = 3;
  specs[1].top_k = 100;
  specs[2].top_p = 0.9f;
  specs[3].min_p = 0.01f;
  for (const SampleSpec& spec : specs) {
    std::vector<int32_t> tokens;
    int other_seed = 0;
    for (int position = 0; position < 50; ++position) {
      const SampleResult first = sample(logits, spec, position);
      tokens.push_back(first.token);
      for (const Tier* tier : available_tiers()) {
        const SampleResult again = sample(logits, spec, position, tier->rows);
        CHECK(again.token == first.token && again.logprob == first.logprob &&
              again.top.size() == first.top.size());
        for (size_t i = 0; i < again.top.size(); ++i) {
          CHECK(again.top[i].token == first.top[i].token && again.top[i].logprob == first.top[i].logprob);
        }
      }
      SampleSpec other = spec;
      other.seed = 6;
      other_seed += sample(logits, other, position).token != first.token;
    }
    std::sort(tokens.begin(), tokens.end());
    CHECK(std::unique(tokens.begin(), tokens.end()) - tokens.begin() > 25);
    CHECK(other_seed > 25);
  }
}

TEST(draws_are_uniform) {
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    int bins[16] = {};
    for (uint64_t position = 0; position < 32'000; ++position) {
      const double u = uniform_draw(seed, position);
      CHECK(u >= 0 && u < 1);
      ++bins[static_cast<int>(u * 16)];
    }
    double chi_square = 0;
    for (const int bin : bins) chi_square += (bin - 2000.0) * (bin - 2000.0) / 2000;
    CHECK(chi_square < 45);
  }
}

TEST_MAIN()
