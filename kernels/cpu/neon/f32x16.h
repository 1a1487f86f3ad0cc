// Sixteen float lanes as four NEON registers; cpu/simd.h includes this, inside its namespaces. All of it is
// in every AArch64 processor, the conversions of float16 too.

struct F32x16 {
  float32x4_t v[4];  // lanes 0..3, 4..7, 8..11, 12..15

  template <class F>
  static inline F32x16 make(F&& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static inline F32x16 zero() { return broadcast(0); }
  static inline F32x16 broadcast(float x) {
    return make([=](int) { return vdupq_n_f32(x); });
  }
  static inline F32x16 load(const float* p) {
    return make([=](int i) { return vld1q_f32(p + 4 * i); });
  }
  inline void store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return make([=](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    return make([=](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static inline F32x16 from_i8(int8x16_t x) {
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
  }
  static inline F32x16 load_i8(const int8_t* p) { return from_i8(vld1q_s8(p)); }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v[i])));
  }
  /// Rounds to nearest, ties to even; none is beyond 32,767.
  inline void store_i16(int16_t* p) const {
    for (int i = 0; i < 4; ++i) vst1_s16(p + 4 * i, vmovn_s32(vcvtnq_s32_f32(v[i])));
  }

  friend inline F32x16 operator+(F32x16 x, F32x16 y) {
    return make([&](int i) { return vaddq_f32(x.v[i], y.v[i]); });
  }
  friend inline F32x16 operator-(F32x16 x, F32x16 y) {
    return make([&](int i) { return vsubq_f32(x.v[i], y.v[i]); });
  }
  friend inline F32x16 operator*(F32x16 x, F32x16 y) {
    return make([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
  }
  friend inline F32x16 operator/(F32x16 x, F32x16 y) {
    return make([&](int i) { return vdivq_f32(x.v[i], y.v[i]); });
  }
};

/// x * y + z, rounded once.
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return F32x16::make([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
}
/// x > y ? x : y, so y where either is NaN (the maximum instructions would give the NaN).
inline F32x16 max(F32x16 x, F32x16 y) {
  return F32x16::make([&](int i) { return vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); });
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(F32x16 x, F32x16 y) {
  return F32x16::make([&](int i) { return vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); });
}
inline F32x16 abs(F32x16 x) {
  return F32x16::make([&](int i) { return vabsq_f32(x.v[i]); });
}
inline F32x16 negate(F32x16 x) {
  return F32x16::make([&](int i) { return vnegq_f32(x.v[i]); });
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, F32x16 x, F32x16 y) {
  const int32_t numbers[4] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(numbers);
  return F32x16::make(
      [&](int i) { return vbslq_f32(vcltq_s32(lane, vdupq_n_s32(n - 4 * i)), x.v[i], y.v[i]); });
}
/// Bit i is set where lane i of `f(i / 4)` is all ones.
template <class F>
inline uint32_t lane_bits(F&& f) {
  const uint32_t bits[4] = {1, 2, 4, 8};
  const uint32x4_t bit = vld1q_u32(bits);
  uint32x4_t all = vandq_u32(f(0), bit);
  all = vorrq_u32(all, vandq_u32(f(1), vshlq_n_u32(bit, 4)));
  all = vorrq_u32(all, vandq_u32(f(2), vshlq_n_u32(bit, 8)));
  all = vorrq_u32(all, vandq_u32(f(3), vshlq_n_u32(bit, 12)));
  return vaddvq_u32(all);
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(F32x16 x, F32x16 y) {
  return lane_bits([&](int i) { return vcgtq_f32(x.v[i], y.v[i]); });
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(F32x16 x) {
  const F32x16 y = x - x;  // NaN unless finite
  return lane_bits([&](int i) { return vceqq_f32(y.v[i], y.v[i]); });
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(F32x16 x, F32x16 shifted) {
  const auto power = [](int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  };
  return F32x16::make([&](int i) {
    const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted.v[i]), vdupq_n_s32(0x4b400000));
    const int32x4_t half = vshrq_n_s32(n, 1);
    return vmulq_f32(vmulq_f32(x.v[i], power(half)), power(vsubq_s32(n, half)));
  });
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(F32x16 x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
/// The largest lane, none being NaN.
inline float largest(F32x16 x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
inline float square_root(float x) {
  return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0);
}
