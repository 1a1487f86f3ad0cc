// Sixteen float lanes as an array; cpu/simd.h includes this, inside its namespaces.

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
/// IEEE half precision, every value exactly.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // As a float of the same bits, half's exponent is off by 112: a power of two, exact for subnormals too.
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}
/// Rounds to nearest, ties to even; what is out of range becomes infinity.
inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and more
  if (magnitude < 0x38800000) {
    // Subnormal: adding 0.5 leaves a last place of 2^-24, that of a subnormal half.
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

struct F32x16 {
  float lane[kLanes];

  template <class F>
  static inline F32x16 make(F&& f) {
    F32x16 r;
    for (int i = 0; i < kLanes; ++i) r.lane[i] = f(i);
    return r;
  }
  static inline F32x16 zero() { return broadcast(0); }
  static inline F32x16 broadcast(float x) {
    return make([=](int) { return x; });
  }
  static inline F32x16 load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  inline void store(float* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = lane[i];
  }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return make([=](int i) { return half_to_float(p[i]); });
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    return make([=](int i) { return bits_float(static_cast<uint32_t>(p[i]) << 16); });
  }
  static inline F32x16 load_i8(const int8_t* p) {
    return make([=](int i) { return static_cast<float>(p[i]); });
  }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(lane[i]);
  }
  /// Rounds to nearest, ties to even; none is beyond 32,767.
  inline void store_i16(int16_t* p) const {
    // Adding 1.5 * 2^23 rounds and leaves the integer in the low bits.
    for (int i = 0; i < kLanes; ++i)
      p[i] = static_cast<int16_t>(static_cast<int32_t>(float_bits(lane[i] + 0x1.8p23f) - 0x4b400000));
  }

  friend inline F32x16 operator+(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] + y.lane[i]; });
  }
  friend inline F32x16 operator-(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] - y.lane[i]; });
  }
  friend inline F32x16 operator*(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] * y.lane[i]; });
  }
  friend inline F32x16 operator/(const F32x16& x, const F32x16& y) {
    return make([&](int i) { return x.lane[i] / y.lane[i]; });
  }
};

/// x * y + z, rounded once.
inline F32x16 fma(const F32x16& x, const F32x16& y, const F32x16& z) {
  return F32x16::make([&](int i) { return __builtin_fmaf(x.lane[i], y.lane[i], z.lane[i]); });
}
/// x > y ? x : y, so y where either is NaN.
inline F32x16 max(const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]; });
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]; });
}
inline F32x16 abs(const F32x16& x) {
  return F32x16::make([&](int i) { return bits_float(float_bits(x.lane[i]) & 0x7fffffff); });
}
inline F32x16 negate(const F32x16& x) {
  return F32x16::make([&](int i) { return -x.lane[i]; });
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, const F32x16& x, const F32x16& y) {
  return F32x16::make([&](int i) { return i < n ? x.lane[i] : y.lane[i]; });
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(const F32x16& x, const F32x16& y) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(x.lane[i] > y.lane[i]) << i;
  return bits;
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(const F32x16& x) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i)
    bits |= static_cast<uint32_t>((float_bits(x.lane[i]) & 0x7f800000) != 0x7f800000) << i;
  return bits;
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(const F32x16& x, const F32x16& shifted) {
  const auto power = [](int32_t n) { return bits_float((static_cast<uint32_t>(n) + 127u) << 23); };
  return F32x16::make([&](int i) {
    const int32_t n = static_cast<int32_t>(float_bits(shifted.lane[i]) - 0x4b400000u);
    const int32_t half = n >> 1;
    return x.lane[i] * power(half) *
           power(static_cast<int32_t>(static_cast<uint32_t>(n) - static_cast<uint32_t>(half)));
  });
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(const F32x16& x) {
  float t[8];
  for (int i = 0; i < 8; ++i) t[i] = x.lane[i] + x.lane[i + 8];
  for (int i = 0; i < 4; ++i) t[i] += t[i + 4];
  for (int i = 0; i < 2; ++i) t[i] += t[i + 2];
  return t[0] + t[1];
}
/// The largest lane, none being NaN.
inline float largest(const F32x16& x) {
  float r = x.lane[0];
  for (int i = 1; i < kLanes; ++i) r = x.lane[i] > r ? x.lane[i] : r;
  return r;
}
inline float square_root(float x) {
  return std::sqrt(x);
}
