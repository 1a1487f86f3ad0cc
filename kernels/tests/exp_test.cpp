#include <cmath>
#include <limits>

#include "cpu/simd.h"
#include "tests/check.h"

using niwaki::F32x16;

namespace {

float exp1(float x) {
  float out[16];
  niwaki::exp(F32x16::broadcast(x)).store(out);
  return out[7];
}
float silu1(float x) {
  float out[16];
  niwaki::silu(F32x16::broadcast(x)).store(out);
  return out[3];
}

/// Distance from the true value in units in the last place of the float nearest to it.
double ulps(float got, long double exact) {
  const float nearest = static_cast<float>(exact);
  const float last =
      std::max(std::nextafter(nearest, INFINITY) - nearest, std::numeric_limits<float>::denorm_min());
  return static_cast<double>(std::fabs(static_cast<long double>(got) - exact) / last);
}

}  // namespace

TEST(exp_is_within_an_ulp) {
  double worst = 0, worst_subnormal = 0;
  for (int i = 0; i <= 400'000; ++i) {
    const float x = -103.5f + static_cast<float>(i) * (192.2f / 400'000);
    const long double exact = std::exp(static_cast<long double>(x));
    double& bound = exact < 1.2e-38L ? worst_subnormal : worst;
    bound = std::max(bound, ulps(exp1(x), exact));
  }
  for (int i = -1000; i <= 1000; ++i) {
    const float x = static_cast<float>(i) * 1e-9f;
    worst = std::max(worst, ulps(exp1(x), std::exp(static_cast<long double>(x))));
  }
  CHECK(worst < 1.0);
  CHECK(worst_subnormal < 1.0);
}

TEST(exp_at_the_edges) {
  const float inf = INFINITY;
  CHECK(exp1(0) == 1.0f);
  CHECK(exp1(-0.0f) == 1.0f);
  CHECK(exp1(-inf) == 0.0f);
  CHECK(exp1(-104.0f) == 0.0f);
  CHECK(exp1(-3e38f) == 0.0f);
  CHECK(exp1(88.72f) < inf);
  CHECK(exp1(88.73f) == inf);
  CHECK(exp1(inf) == inf);
  CHECK(std::isnan(exp1(NAN)));
  CHECK(std::isnan(exp1(-NAN)));
}

TEST(silu_matches_its_definition) {
  double worst = 0;
  for (int i = -4000; i <= 4000; ++i) {
    const float x = static_cast<float>(i) * 0.02f;
    const long double exact = x / (1 + std::exp(-static_cast<long double>(x)));
    worst = std::max(worst, ulps(silu1(x), exact));
  }
  CHECK(worst < 3.0);
  CHECK(silu1(0) == 0.0f);
  CHECK(silu1(200) == 200.0f);
  CHECK(silu1(-200) == 0.0f);
  CHECK(std::isnan(silu1(NAN)));
}

TEST(half_conversions_are_exact) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    uint16_t in[16], out[16];
    for (auto& v : in) v = static_cast<uint16_t>(h);
    const F32x16 x = F32x16::load_f16(in);
    x.store_f16(out);
    if ((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0) {
      CHECK((out[0] & 0x7c00) == 0x7c00 && (out[0] & 0x3ff) != 0);
    } else {
      CHECK(out[0] == h);
    }
  }
  // Ties go to even; the border to infinity is 65520.
  const float in[16] = {1 + 0x1p-11f, 1 + 0x3p-11f,    65519.996f, 65520,     -65520,       0x1p-25f,
                        0x1.8p-24f,   0x1.000002p-25f, -0.0f,      1e-30f,    0x1.ffcp-15f, 0x1.ffep-15f,
                        3e38f,        2048.5f,         -1e-8f,     0x1.4p-24f};
  const uint16_t expected[16] = {0x3c00, 0x3c02, 0x7bff, 0x7c00, 0xfc00, 0,      2,      1,
                                 0x8000, 0,      0x0400, 0x0400, 0x7c00, 0x6800, 0x8000, 1};
  uint16_t out[16];
  F32x16::load(in).store_f16(out);
  for (int i = 0; i < 16; ++i) CHECK(out[i] == expected[i]);
}

TEST_MAIN()
