#pragma once

namespace niwaki {

// Functions of a double by our own code, so that their bits do not depend on a system's mathematical library.
// All within about 1e-16 of the true value (relative for log and exp, absolute for sine and cosine).

/// ln x for finite x > 0.
double natural_log(double x);

/// e^x; 0 from -745.2 down, infinity from 709.8 up.
double natural_exp(double x);

struct SinCos {
  double sin, cos;
};
/// Of the exact product a * b, |a * b| < 2^30 radians.
SinCos sin_cos_of_product(double a, double b);

}  // namespace niwaki
