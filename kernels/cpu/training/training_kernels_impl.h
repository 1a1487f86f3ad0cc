// The kernels of training_kernels.h over F32x16; a tier's training.cpp includes this after choosing its
// simd.h.
#pragma once
#include "cpu/simd.h"
#include "cpu/training/dequantize_impl.h"
#include "cpu/training/multiply_impl.h"
#include "cpu/training/training_kernels.h"

namespace niwaki {
namespace {

void rms_norm_backward(const float* x, const float* weight, float eps, int64_t n, const float* dy,
                       bool accumulate, float* dx) {
  F32x16 squares = F32x16::zero(), products = F32x16::zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = F32x16::load(x + i);
    squares = fma(v, v, squares);
    products = fma(F32x16::load(dy + i) * F32x16::load(weight + i), v, products);
  }
  // With u = dy * weight and r = 1 / rms(x): dx = r u - x r^3 mean(u x).
  const float r = 1.0f / square_root(sum(squares) / static_cast<float>(n) + eps);
  const F32x16 inverse = F32x16::broadcast(r);
  const F32x16 along = F32x16::broadcast(-(r * r * r * (sum(products) / static_cast<float>(n))));
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 u = F32x16::load(dy + i) * F32x16::load(weight + i);
    const F32x16 d = fma(F32x16::load(x + i), along, u * inverse);
    (accumulate ? F32x16::load(dx + i) + d : d).store(dx + i);
  }
}

void norm_rope_backward(const float* x, const float* weight, float eps, const float* rope, int32_t head_dim,
                        const float* dy, float* dx) {
  const int32_t half = head_dim / 2;
  for (int32_t i = 0; i < half; i += kLanes) {
    const int n = half - i < kLanes ? half - i : kLanes;
    const auto load = [n](const float* p) { return n == kLanes ? F32x16::load(p) : load_first(p, n); };
    const F32x16 low = load(dy + i), high = load(dy + half + i);
    const F32x16 cos = load(rope + i), sin = load(rope + half + i);
    store_first(fma(low, cos, high * sin), dx + i, n);
    store_first(fma(high, cos, negate(low * sin)), dx + half + i, n);
  }
  rms_norm_backward(x, weight, eps, head_dim, dx, false, dx);
}

void softmax(float* scores, int64_t count, int64_t columns, float scale) {
  const float lowest = -__builtin_inff();
  const auto load = [&](int64_t i) {
    return i + kLanes <= count ? F32x16::load(scores + i)
                               : load_first(scores + i, static_cast<int>(count - i), lowest);
  };
  F32x16 top = F32x16::broadcast(lowest);
  for (int64_t i = 0; i < count; i += kLanes) top = max(load(i), top);
  const F32x16 max = F32x16::broadcast(largest(top)), factor = F32x16::broadcast(scale);
  F32x16 sums = F32x16::zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 e = exp((load(i) - max) * factor);
    sums = sums + e;
    e.store(scores + i);
  }
  const F32x16 inverse = F32x16::broadcast(1.0f / sum(sums));
  for (int64_t i = 0; i < columns; i += kLanes)
    (i < count ? F32x16::load(scores + i) * inverse : F32x16::zero()).store(scores + i);
}

void softmax_backward(const float* p, int64_t columns, float scale, float* dy) {
  F32x16 products = F32x16::zero();
  for (int64_t i = 0; i < columns; i += kLanes)
    products = fma(F32x16::load(p + i), F32x16::load(dy + i), products);
  const F32x16 mean = F32x16::broadcast(sum(products)), factor = F32x16::broadcast(scale);
  for (int64_t i = 0; i < columns; i += kLanes)
    (F32x16::load(p + i) * factor * (F32x16::load(dy + i) - mean)).store(dy + i);
}

void swiglu_backward(const float* gate, const float* up, const float* dy, int64_t count, float* dgate,
                     float* dup) {
  const F32x16 one = F32x16::broadcast(1.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32x16 g = F32x16::load(gate + i), u = F32x16::load(up + i), d = F32x16::load(dy + i);
    const F32x16 sigmoid = one / (one + exp(negate(g)));
    (d * (g * sigmoid)).store(dup + i);
    (d * u * (sigmoid * fma(g, one - sigmoid, one))).store(dgate + i);
  }
}

constexpr TrainingKernels kKernels = {multiply,          dequantize,         dequantize_transposed,
                                      rms_norm_backward, norm_rope_backward, softmax,
                                      softmax_backward,  swiglu_backward};

}  // namespace
}  // namespace niwaki
