#include <limits>

#include "check.h"
#include "cpu/linear_kernels.h"
#include "cpu/tier.h"
#include "tensors.h"

using namespace niwaki;
using namespace niwaki::test;

namespace {

struct Group {
  bool finite;
  int16_t quanta[kGroupColumns];
  float scale;
};

Group quantize(const Tier& tier, const std::vector<float>& x) {
  Group group{};
  group.finite = tier.linear.quantize(x.data(), static_cast<int>(x.size()), group.quanta, &group.scale);
  return group;
}

/// What must hold of any finite group; returns the portable result, which every tier's equals.
Group check(const std::vector<float>& x) {
  const auto tiers = available_tiers();
  const Group group = quantize(*tiers.back(), x);
  CHECK(group.finite);
  int largest = 0, sum = 0;
  for (const int16_t q : group.quanta) {
    largest = std::max(largest, std::abs(int{q}));
    sum += std::abs(int{q});
  }
  CHECK(largest <= kMaxQuantum);
  CHECK(sum <= kMaxQuantumSum);
  CHECK(std::isfinite(group.scale) && group.scale >= 0);
  for (size_t i = 0; i < kGroupColumns; ++i) {
    const double value = i < x.size() ? x[i] : 0.0;
    CHECK(std::abs(value - double(group.scale) * group.quanta[i]) <= 0.5001 * double(group.scale));
  }
  for (const Tier* tier : tiers) {
    const Group other = quantize(*tier, x);
    CHECK(other.finite && std::memcmp(other.quanta, group.quanta, sizeof group.quanta) == 0);
    CHECK(std::memcmp(&other.scale, &group.scale, sizeof group.scale) == 0);
  }
  return group;
}

}  // namespace

TEST(random_groups_keep_the_bounds_and_use_them) {
  Random random(1);
  for (int i = 0; i < 3000; ++i) {
    std::vector<float> x(i % 7 == 0 ? 64 : 128);
    const int shape = i % 5;
    const float size = std::ldexp(1.0f, static_cast<int>(random.below(200)) - 100);
    for (float& v : x) {
      const float u = static_cast<float>(2 * random.uniform() - 1);
      v = size * (shape == 0   ? u
                  : shape == 1 ? u * u * u
                  : shape == 2 ? std::copysign(1.0f, u)
                  : shape == 3 ? u + 3
                               : std::copysign(1 - u * u * 0x1p-9f, u));
    }
    const Group group = check(x);
    int largest = 0, sum = 0;
    for (const int16_t q : group.quanta) {
      largest = std::max(largest, std::abs(int{q}));
      sum += std::abs(int{q});
    }
    CHECK(largest == kMaxQuantum || sum > kMaxQuantumSum - 140);  // one of the bounds is reached
  }
}

TEST(an_outlier_alone_is_exact) {
  std::vector<float> x(128, 0.0f);
  x[77] = -1234.5f;
  const Group group = check(x);
  CHECK(group.quanta[77] == -511);
}

TEST(ties_round_to_even) {
  // The maximum makes the scale exactly 1/2.
  std::vector<float> x(128, 0.0f);
  x[0] = 255.5f;
  x[1] = 0.25f;
  x[2] = 0.75f;
  x[3] = -1.25f;
  x[4] = -0.25f;
  const Group group = check(x);
  CHECK(group.scale == 0.5f);
  CHECK(group.quanta[0] == 511 && group.quanta[1] == 0 && group.quanta[2] == 2 && group.quanta[3] == -2 &&
        group.quanta[4] == 0);
}

TEST(all_alike_reach_the_bound_of_the_sum) {
  const Group group = check(std::vector<float>(128, -0.37f));
  CHECK(group.quanta[0] == -255);
}

TEST(zeros_are_zero) {
  for (const float zero : {0.0f, -0.0f}) {
    const Group group = check(std::vector<float>(128, zero));
    CHECK(group.scale == 0.0f);
    for (const int16_t q : group.quanta) CHECK(q == 0);
  }
}

TEST(the_smallest_and_the_largest_floats) {
  for (const float v : {std::numeric_limits<float>::denorm_min(), 1e-42f, std::numeric_limits<float>::min(),
                        0x1p-119f, 0x1p-118f, 0x1p-117f, 0x1p-116f, std::numeric_limits<float>::max()}) {
    std::vector<float> x(128, v);
    check(x);
    for (size_t i = 0; i < x.size(); i += 2) x[i] = -v / 3;
    check(x);
    x.assign(64, 0.0f);
    x[63] = v;
    check(x);
  }
}

TEST(nan_and_infinity_are_reported_wherever_they_stand) {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
    for (const size_t size : {64, 128}) {
      for (size_t i = 0; i < size; ++i) {
        std::vector<float> x(size, 1.0f);
        x[i] = bad;
        for (const Tier* tier : available_tiers()) CHECK(!quantize(*tier, x).finite);
      }
    }
  }
}

TEST_MAIN()
