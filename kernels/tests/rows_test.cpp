#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/row_kernels.h"
#include "cpu/tier.h"
#include "tests/check.h"
#include "tests/random.h"

using namespace niwaki;
using niwaki::test::Random;

namespace {

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double norm_of(const std::vector<float>& x, double eps) {
  double squares = 0;
  for (const float v : x) squares += static_cast<double>(v) * v;
  return std::sqrt(squares / static_cast<double>(x.size()) + eps);
}

}  // namespace

TEST(rms_norm_matches_double_and_every_tier) {
  Random random(1);
  for (const size_t n : {1u, 7u, 16u, 31u, 80u, 128u, 2560u, 4096u}) {
    const std::vector<float> x = random.normals(n, 3), weight = random.normals(n);
    const double norm = norm_of(x, 1e-6);
    std::vector<float> first;
    for (const Tier* tier : available_tiers()) {
      std::vector<float> y(n + 1, 7.0f);
      CHECK(tier->rows.rms_norm(x.data(), weight.data(), 1e-6f, static_cast<int64_t>(n), y.data()));
      for (size_t i = 0; i < n; ++i)
        CHECK(std::fabs(y[i] - x[i] / norm * weight[i]) <= 1e-6 * std::fabs(y[i]));
      CHECK(y[n] == 7.0f);
      if (first.empty()) first = y;
      CHECK(same_bits(first, y));
      std::vector<float> in_place = x;
      tier->rows.rms_norm(in_place.data(), weight.data(), 1e-6f, static_cast<int64_t>(n), in_place.data());
      in_place.push_back(7.0f);
      CHECK(same_bits(first, in_place));
    }
  }
}

TEST(rms_norm_tells_what_is_not_finite) {
  for (const Tier* tier : available_tiers()) {
    for (const float bad : {NAN, INFINITY, -INFINITY, 3e38f}) {
      std::vector<float> x(40, 1.0f), weight(40, 1.0f), y(40);
      x[37] = bad;
      CHECK(!tier->rows.rms_norm(x.data(), weight.data(), 1e-6f, 40, y.data()));
    }
  }
}

TEST(norm_rope_matches_double_and_every_tier) {
  Random random(2);
  for (const int32_t dim : {16, 64, 80, 128}) {
    const auto n = static_cast<size_t>(dim), half = n / 2;
    const std::vector<float> x = random.normals(n), weight = random.normals(n);
    std::vector<float> rope(n);
    for (size_t i = 0; i < half; ++i) {
      rope[i] = std::cos(static_cast<float>(i));
      rope[half + i] = std::sin(static_cast<float>(i));
    }
    const double norm = norm_of(x, 1e-5);
    std::vector<float> first;
    for (const Tier* tier : available_tiers()) {
      std::vector<float> y = x;
      CHECK(tier->rows.norm_rope(y.data(), weight.data(), 1e-5f, rope.data(), dim));
      for (size_t i = 0; i < half; ++i) {
        const double a = x[i] / norm * weight[i], b = x[half + i] / norm * weight[half + i];
        const double cos = rope[i], sin = rope[half + i];
        const double tolerance = 1e-6 * (std::fabs(a) + std::fabs(b));
        CHECK(std::fabs(y[i] - (a * cos - b * sin)) <= tolerance);
        CHECK(std::fabs(y[half + i] - (b * cos + a * sin)) <= tolerance);
      }
      if (first.empty()) first = y;
      CHECK(same_bits(first, y));
    }
  }
}

TEST(argmax_takes_the_first_of_the_largest) {
  Random random(3);
  for (const Tier* tier : available_tiers()) {
    for (const int64_t n : {1, 5, 16, 17, 1024, 1025, 5000}) {
      std::vector<float> x = random.normals(static_cast<size_t>(n));
      for (float& v : x) v = std::round(v * 4);  // many ties
      bool finite;
      CHECK(tier->rows.argmax(x.data(), n, &finite) == std::max_element(x.begin(), x.end()) - x.begin());
      CHECK(finite);
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        std::vector<float> y = x;
        y[static_cast<size_t>(random.below(n))] = bad;
        tier->rows.argmax(y.data(), n, &finite);
        CHECK(!finite);
      }
      const std::vector<float> banned(static_cast<size_t>(n), -INFINITY);
      CHECK(tier->rows.argmax(banned.data(), n, &finite) == 0);
    }
  }
}

TEST(exp_weights_matches_double_and_every_tier) {
  Random random(4);
  for (const int64_t n : {1, 16, 1000, 1024, 2500}) {
    const std::vector<float> x = random.normals(static_cast<size_t>(n), 5);
    const float max = *std::max_element(x.begin(), x.end());
    std::vector<float> first;
    std::vector<double> first_sums;
    for (const Tier* tier : available_tiers()) {
      std::vector<float> weights(static_cast<size_t>(n));
      std::vector<double> sums(static_cast<size_t>((n + kSumRun - 1) / kSumRun));
      tier->rows.exp_weights(x.data(), n, max, 0.7f, weights.data(), sums.data());
      double total = 0, expected = 0;
      for (const double sum : sums) total += sum;
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = std::exp(static_cast<double>((x[i] - max) / 0.7f));
        CHECK(std::fabs(weights[i] - exact) <= 1.2e-7 * exact + 1e-45);
        expected += exact;
      }
      CHECK(std::fabs(total - expected) <= 1e-6 * expected);
      if (first.empty()) first = weights, first_sums = sums;
      CHECK(same_bits(first, weights));
      CHECK(first_sums == sums);
    }
  }
}

TEST(above_gives_every_index_in_any_room) {
  Random random(5);
  for (const Tier* tier : available_tiers()) {
    for (const int64_t n : {1, 16, 33, 1000}) {
      const std::vector<float> x = random.normals(static_cast<size_t>(n));
      std::vector<int32_t> expected, got;
      for (int64_t i = 0; i < n; ++i) {
        if (x[static_cast<size_t>(i)] > 0.3f) expected.push_back(static_cast<int32_t>(i));
      }
      for (int64_t begin = 0; begin < n;) {
        int32_t ids[20];
        const int64_t count = tier->rows.above(x.data(), n, 0.3f, &begin, ids, 20);
        CHECK(count <= 20);
        got.insert(got.end(), ids, ids + count);
      }
      CHECK(got == expected);
    }
  }
}

TEST_MAIN()
