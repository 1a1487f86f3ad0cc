#include "cpu/float16.h"

#include <cmath>

#include "check.h"

using namespace niwaki;

TEST(every_half_survives_the_way_through_float32) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float value = half_to_float(static_cast<uint16_t>(half));
    const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) {
      CHECK(fraction != 0 ? std::isnan(value) : std::isinf(value));
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, int(exponent) - 25);
      CHECK(double(value) == (half & 0x8000 ? -magnitude : magnitude));
    }
    CHECK(std::signbit(value) == ((half & 0x8000) != 0));
    const uint16_t back = float_to_half(value);
    CHECK(back == half || (std::isnan(value) && std::isnan(half_to_float(back))));
  }
}

TEST(between_two_halves_the_nearest_wins_and_ties_go_to_even) {
  for (uint32_t half = 0; half < 0x7bff; ++half) {
    const float low = half_to_float(static_cast<uint16_t>(half));
    const float high = half_to_float(static_cast<uint16_t>(half + 1));
    const float middle = static_cast<float>((double(low) + double(high)) / 2);  // exact: one more bit
    CHECK(float_to_half(middle) == (half % 2 == 0 ? half : half + 1));
    CHECK(float_to_half(std::nextafterf(middle, low)) == half);
    CHECK(float_to_half(std::nextafterf(middle, high)) == half + 1);
    CHECK(float_to_half(-middle) == (0x8000u | (half % 2 == 0 ? half : half + 1)));
  }
  CHECK(float_to_half(65519.996f) == 0x7bff);
  CHECK(float_to_half(65520.0f) == 0x7c00);
  CHECK(float_to_half(3e38f) == 0x7c00);
  CHECK(float_to_half(1e-30f) == 0);
  CHECK(float_to_half(-1e-45f) == 0x8000);
}

TEST(bfloat16_is_the_upper_half_of_float32) {
  CHECK(bfloat16_to_float(0x3f80) == 1.0f);
  CHECK(bfloat16_to_float(0xc049) == -3.140625f);
  CHECK(std::isnan(bfloat16_to_float(0x7fc0)));
}

TEST_MAIN()
