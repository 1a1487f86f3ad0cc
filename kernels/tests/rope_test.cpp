#include "cpu/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/double_math.h"
#include "niwaki/error.h"
#include "tests/check.h"

using namespace niwaki;

namespace {

constexpr long double kPi = 3.14159265358979323846264338327950288L;

long double frequency(const RopeSpec& spec, int i) {
  const long double plain = std::pow(static_cast<long double>(spec.base), -2.0L * i / spec.head_dim);
  if (spec.scaling == RopeScaling::kNone) return plain;
  const long double factor = spec.factor;
  if (spec.scaling == RopeScaling::kLinear) return plain / factor;
  // Peng et al., 2023, equations 17 to 23, by number of rotations over the original context.
  const auto dimension = [&](double rotations) {
    return spec.head_dim * std::log(spec.original_context / (rotations * 2 * kPi)) /
           (2 * std::log(static_cast<long double>(spec.base)));
  };
  long double low = std::max(std::floor(dimension(spec.beta_fast)), 0.0L);
  long double high = std::min(std::ceil(dimension(spec.beta_slow)), spec.head_dim - 1.0L);
  if (low == high) high += 0.001L;
  const long double ramp = std::clamp((i - low) / (high - low), 0.0L, 1.0L);
  return plain / factor * ramp + plain * (1 - ramp);
}

/// Largest difference to the definition over some positions.
double worst(const RopeSpec& spec) {
  const Rope rope(spec, "test");
  std::vector<float> row(static_cast<size_t>(spec.head_dim));
  double result = 0;
  const double factor = spec.scaling == RopeScaling::kYarn ? spec.attention_factor : 1;
  for (const int64_t position : {0, 1, 2, 17, 511, 4096, 65535, 999'983}) {
    rope.row(position, row.data());
    for (int i = 0; i < spec.head_dim / 2; ++i) {
      const long double angle = static_cast<long double>(position) * frequency(spec, i);
      const auto half = static_cast<size_t>(spec.head_dim / 2), at = static_cast<size_t>(i);
      result = std::max(result, static_cast<double>(std::fabs(row[at] - std::cos(angle) * factor)));
      result = std::max(result, static_cast<double>(std::fabs(row[half + at] - std::sin(angle) * factor)));
    }
  }
  return result;
}

}  // namespace

TEST(logarithm_and_exponential) {
  for (const double x : {1e-300, 0.1, 0.5, 0.70710678, 0.99999, 1.0, 1.0001, 2.0, 10.0, 1e4, 5e6, 1e300}) {
    const long double exact = std::log(static_cast<long double>(x));
    CHECK(std::fabs(natural_log(x) - exact) <= 3e-16L * std::fabs(exact));
  }
  for (double x = -740; x < 709; x += 3.37) {
    const long double exact = std::exp(static_cast<long double>(x));
    CHECK(std::fabs(natural_exp(x) - exact) <= 4e-16L * exact + std::numeric_limits<double>::denorm_min());
  }
  CHECK(natural_exp(0) == 1 && natural_log(1) == 0);
  CHECK(natural_exp(-1000) == 0 && natural_exp(1000) == INFINITY);
}

TEST(sine_and_cosine_of_a_product) {
  double error = 0;
  for (int64_t i = 0; i < 20'000; ++i) {
    const double a = static_cast<double>(i * 53), b = 1.0 / static_cast<double>(1 + i % 97);
    const long double x = static_cast<long double>(a) * static_cast<long double>(b);  // 64 bits: 1e-13 at 1e6
    const SinCos got = sin_cos_of_product(a, b);
    error = std::max(error, static_cast<double>(std::fabs(got.sin - std::sin(x))));
    error = std::max(error, static_cast<double>(std::fabs(got.cos - std::cos(x))));
  }
  CHECK(error < 1e-13);
  error = 0;
  for (int i = -20'000; i < 20'000; ++i) {
    const SinCos got = sin_cos_of_product(i * 0x1p-10, 1);
    error = std::max(
        error, static_cast<double>(std::fabs(got.sin - std::sin(static_cast<long double>(i * 0x1p-10)))));
    error = std::max(
        error, static_cast<double>(std::fabs(got.cos - std::cos(static_cast<long double>(i * 0x1p-10)))));
  }
  CHECK(error < 3e-16);
}

TEST(angles_match_their_definition) {
  const double rounding = 6.1e-8;  // half a last place of a float near 1
  CHECK(worst({128, 1e6}) < rounding);
  CHECK(worst({80, 1e4}) < rounding);
  CHECK(worst({64, 5e6}) < rounding);
  CHECK(worst({128, 1e6, RopeScaling::kLinear, 8}) < rounding);
  const double attention = 0.1 * std::log(4.0) + 1;
  CHECK(worst({128, 1e6, RopeScaling::kYarn, 4, 16384, 32, 1, attention}) < 2 * rounding);
  CHECK(worst({64, 1e4, RopeScaling::kYarn, 4, 32, 32, 1, attention}) < 2 * rounding);
  CHECK(worst({16, 100, RopeScaling::kYarn, 2, 64, 32, 1, 1}) < rounding);
}

TEST(position_zero_turns_nothing) {
  const Rope rope({64, 1e6}, "test");
  float row[64];
  rope.row(0, row);
  for (int i = 0; i < 32; ++i) CHECK(row[i] == 1 && row[32 + i] == 0);
}

TEST(meaningless_specifications_are_refused) {
  const auto refused = [](const RopeSpec& spec) {
    try {
      Rope rope(spec, "rope");
      return false;
    } catch (const Error& error) {
      return error.code == ErrorCode::kInvalidArgument && std::string(error.what()).starts_with("rope: ");
    }
  };
  CHECK(refused({0, 1e6}));
  CHECK(refused({24, 1e6}));
  CHECK(refused({64, 1}));
  CHECK(refused({64, NAN}));
  CHECK(refused({64, 1e6, RopeScaling::kLinear, 0}));
  CHECK(refused({64, 1e6, RopeScaling::kYarn, 4, 0}));
  CHECK(refused({64, 1e6, RopeScaling::kYarn, 4, 100, 0}));
  CHECK(refused({64, 1e6, RopeScaling::kYarn, 4, 100, 32, 0}));
  CHECK(refused({64, 1e6, RopeScaling::kYarn, 4, 100, 32, 1, INFINITY}));
}

TEST_MAIN()
