// The tests of exp_test.cpp with the lanes of NEON.
#define NIWAKI_SIMD_NEON
#include "exp_test.cpp"
