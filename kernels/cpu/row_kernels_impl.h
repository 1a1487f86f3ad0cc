// The kernels of row_kernels.h over F32x16; a tier's rows.cpp includes this after choosing its simd.h.
#pragma once
#include "cpu/row_kernels.h"
#include "cpu/simd.h"

namespace niwaki {
namespace {

inline float square_sum(const float* x, int64_t n) {
  F32x16 squares = F32x16::zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32x16 v = F32x16::load(x + i);
    squares = fma(v, v, squares);
  }
  if (i < n) {
    const F32x16 v = load_first(x + i, static_cast<int>(n - i));
    squares = fma(v, v, squares);
  }
  return sum(squares);
}

inline bool is_finite(float x) {
  return x - x == 0;
}

bool rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float squares = square_sum(x, n);
  const F32x16 inverse = F32x16::broadcast(1.0f / square_root(squares / static_cast<float>(n) + eps));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    (F32x16::load(x + i) * inverse * F32x16::load(weight + i)).store(y + i);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_first(load_first(x + i, rest) * inverse * load_first(weight + i, rest), y + i, rest);
  }
  return is_finite(squares);
}

bool norm_rope(float* head, const float* weight, float eps, const float* rope, int32_t head_dim) {
  const int32_t half = head_dim / 2;
  const float squares = square_sum(head, head_dim);
  const F32x16 inverse = F32x16::broadcast(1.0f / square_root(squares / static_cast<float>(head_dim) + eps));
  for (int32_t i = 0; i < half; i += kLanes) {
    const int n = half - i < kLanes ? half - i : kLanes;
    const auto load = [n](const float* p) { return n == kLanes ? F32x16::load(p) : load_first(p, n); };
    const auto store = [n](const F32x16& v, float* p) { n == kLanes ? v.store(p) : store_first(v, p, n); };
    const F32x16 x = load(head + i) * inverse * load(weight + i);
    const F32x16 y = load(head + half + i) * inverse * load(weight + half + i);
    const F32x16 cos = load(rope + i), sin = load(rope + half + i);
    store(fma(x, cos, negate(y * sin)), head + i);
    store(fma(y, cos, x * sin), head + half + i);
  }
  return is_finite(squares);
}

int64_t argmax(const float* x, int64_t n, bool* finite) {
  // The largest value run by run; a later run replaces an earlier one only if it is larger, so the first one
  // that has it stays, and only that is searched.
  constexpr int64_t kRun = 1024;
  const F32x16 lowest = F32x16::broadcast(-__builtin_inff());
  F32x16 spoiled = F32x16::zero();
  float best = 0;
  int64_t best_run = -1;
  for (int64_t run = 0; run < n; run += kRun) {
    const int64_t end = n - run < kRun ? n : run + kRun;
    F32x16 top = lowest;
    int64_t i = run;
    for (; i + kLanes <= end; i += kLanes) {
      const F32x16 v = F32x16::load(x + i);
      spoiled = spoiled + (v - v);  // NaN once a value is not finite
      top = max(v, top);
    }
    if (i < end) {
      const F32x16 v = load_first(x + i, static_cast<int>(end - i), x[i]);
      spoiled = spoiled + (v - v);
      top = max(v, top);
    }
    const float value = largest(top);
    if (best_run < 0 || value > best) {
      best = value;
      best_run = run;
    }
  }
  *finite = sum(spoiled) == 0;
  for (int64_t i = best_run; i < n && i < best_run + kRun; ++i) {
    if (x[i] == best) return i;
  }
  return 0;  // nothing but NaN
}

void exp_weights(const float* x, int64_t n, float max, float temperature, float* weights, double* sums) {
  const F32x16 top = F32x16::broadcast(max), divisor = F32x16::broadcast(temperature);
  for (int64_t run = 0; run < n; run += kSumRun) {
    const int64_t end = n - run < kSumRun ? n : run + kSumRun;
    double lanes[kLanes] = {};
    for (int64_t i = run; i < end; i += kLanes) {
      const int count = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
      const F32x16 v = count == kLanes ? F32x16::load(x + i) : load_first(x + i, count, -__builtin_inff());
      alignas(64) float weight[kLanes];
      exp((v - top) / divisor).store(weight);
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(weight[lane]);
      if (weights != nullptr) {
        for (int lane = 0; lane < count; ++lane) weights[i + lane] = weight[lane];
      }
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    }
    sums[run / kSumRun] = lanes[0];
  }
}

int64_t above(const float* x, int64_t n, float threshold, int64_t* begin, int32_t* ids, int64_t room) {
  const F32x16 limit = F32x16::broadcast(threshold);
  int64_t count = 0, i = *begin;
  for (; i < n && count + kLanes <= room; i += kLanes) {
    const F32x16 v =
        n - i >= kLanes ? F32x16::load(x + i) : load_first(x + i, static_cast<int>(n - i), threshold);
    for (uint32_t bits = greater(v, limit); bits != 0; bits &= bits - 1) {
      ids[count++] = static_cast<int32_t>(i + __builtin_ctz(bits));
    }
  }
  *begin = i < n ? i : n;
  return count;
}

}  // namespace
}  // namespace niwaki
