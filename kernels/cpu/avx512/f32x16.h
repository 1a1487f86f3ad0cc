// Sixteen float lanes as one AVX-512 register; cpu/simd.h includes this, inside its namespaces.

struct F32x16 {
  __m512 v;

  static inline F32x16 zero() { return {_mm512_setzero_ps()}; }
  static inline F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  inline void store(float* p) const { _mm512_storeu_ps(p, v); }
  /// IEEE half precision, 16 values.
  static inline F32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static inline F32x16 load_bf16(const uint16_t* p) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16))};
  }
  static inline F32x16 load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  /// Rounds to nearest, ties to even; what is out of range becomes infinity.
  inline void store_f16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  /// Rounds to nearest, ties to even; none is beyond 32,767.
  inline void store_i16(int16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
  }

  friend inline F32x16 operator+(F32x16 x, F32x16 y) { return {_mm512_add_ps(x.v, y.v)}; }
  friend inline F32x16 operator-(F32x16 x, F32x16 y) { return {_mm512_sub_ps(x.v, y.v)}; }
  friend inline F32x16 operator*(F32x16 x, F32x16 y) { return {_mm512_mul_ps(x.v, y.v)}; }
  friend inline F32x16 operator/(F32x16 x, F32x16 y) { return {_mm512_div_ps(x.v, y.v)}; }
};

/// x * y + z, rounded once.
inline F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm512_fmadd_ps(x.v, y.v, z.v)};
}
/// x > y ? x : y, so y where either is NaN.
inline F32x16 max(F32x16 x, F32x16 y) {
  return {_mm512_max_ps(x.v, y.v)};
}
/// x < y ? x : y, so y where either is NaN.
inline F32x16 min(F32x16 x, F32x16 y) {
  return {_mm512_min_ps(x.v, y.v)};
}
inline F32x16 abs(F32x16 x) {
  return {_mm512_and_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff)))};
}
inline F32x16 negate(F32x16 x) {
  return {_mm512_xor_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN)))};
}
/// The first `n` lanes of x, the others of y.
inline F32x16 first(int n, F32x16 x, F32x16 y) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(_mm512_set1_epi32(n), lane), y.v, x.v)};
}
/// Bit i is set where x[i] > y[i].
inline uint32_t greater(F32x16 x, F32x16 y) {
  return _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ);
}
/// Bit i is set where x[i] is finite.
inline uint32_t finite(F32x16 x) {
  const F32x16 y = x - x;  // NaN unless finite
  return _mm512_cmp_ps_mask(y.v, y.v, _CMP_ORD_Q);
}
/// x * 2^(n/2) * 2^(n - n/2), n the integer whose float with 1.5 * 2^23 added is `shifted`.
inline F32x16 scale(F32x16 x, F32x16 shifted) {
  const auto power = [](__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
  };
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(0x4b400000));
  const __m512i half = _mm512_srai_epi32(n, 1);
  return {_mm512_mul_ps(_mm512_mul_ps(x.v, power(half)), power(_mm512_sub_epi32(n, half)))};
}
/// The lanes added as a tree: 8+8, 4+4, 2+2, 1+1.
inline float sum(F32x16 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The largest lane, none being NaN.
inline float largest(F32x16 x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float square_root(float x) {
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
}
