#include "cpu/double_math.h"

#include <cmath>

namespace niwaki {
namespace {

// ln 2 and pi/2 as unevaluated sums of two doubles.
constexpr double kLn2High = 0x1.62e42fefa39efp-1, kLn2Low = 0x1.abc9e3b39803fp-56;
constexpr double kHalfPiHigh = 0x1.921fb54442d18p+0, kHalfPiLow = 0x1.1a62633145c07p-54;

}  // namespace

double natural_log(double x) {
  // x = m 2^e with m in [sqrt 1/2, sqrt 2); ln m = 2 artanh s, s = (m - 1) / (m + 1), |s| < 0.1716.
  int e;
  double m = std::frexp(x, &e);
  if (m < 0x1.6a09e667f3bcdp-1) {
    m *= 2;
    --e;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  double p = 0;
  for (int k = 25; k >= 3; k -= 2) p = std::fma(p, square, 1.0 / k);
  const double tail = std::fma(p * square, 2 * s, e * kLn2Low);
  return std::fma(e, kLn2High, 2 * s + tail);
}

double natural_exp(double x) {
  if (x > 710) return HUGE_VAL;
  if (x < -746) return 0;
  // x = n ln 2 + r, |r| <= 0.347; e^r by its series.
  const double n = std::nearbyint(x * 0x1.71547652b82fep+0);
  const double r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, x));
  double p = 1;
  for (int k = 17; k >= 1; --k) p = std::fma(p, r / k, 1.0);
  return std::ldexp(p, static_cast<int>(n));
}

SinCos sin_cos_of_product(double a, double b) {
  const double x = a * b, rest = std::fma(a, b, -x);
  const double n = std::nearbyint(x * 0x1.45f306dc9c883p-1);
  const double r = std::fma(-n, kHalfPiLow, std::fma(-n, kHalfPiHigh, x)) + rest;
  // |r| <= pi/4: the series of both, in Horner form.
  const double square = -r * r;
  double sine = 1, cosine = 1;
  for (int k = 18; k >= 2; k -= 2) sine = std::fma(sine, square / (k * (k + 1)), 1.0);
  for (int k = 18; k >= 2; k -= 2) cosine = std::fma(cosine, square / (k * (k - 1)), 1.0);
  sine *= r;
  switch (static_cast<long long>(n) & 3) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

}  // namespace niwaki
