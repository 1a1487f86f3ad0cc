const floats = new Float32Array(1);
const bits = new Uint32Array(floats.buffer);

/** The float32 bits of the float16 with bits `h`: exact for every value; NaN payloads stay. */
export function halfToFloatBits(h: number): number {
  const sign = (h & 0x8000) << 16;
  const exponent = (h >> 10) & 0x1f;
  const mantissa = h & 0x3ff;
  if (exponent === 0x1f) return (sign | 0x7f800000 | (mantissa << 13)) >>> 0;
  if (exponent !== 0) return (sign | ((exponent + 112) << 23) | (mantissa << 13)) >>> 0;
  if (mantissa === 0) return sign >>> 0;
  // Subnormal: mantissa · 2^-24, which float32 holds as a normal number.
  const shift = Math.clz32(mantissa) - 21;
  return (sign | ((113 - shift) << 23) | (((mantissa << shift) & 0x3ff) << 13)) >>> 0;
}

/** The value of the float16 with bits `h`. */
export function halfToFloat(h: number): number {
  bits[0] = halfToFloatBits(h);
  return floats[0]!;
}

/** The float16 bits nearest to the float32 with bits `f`, ties to even; too large becomes infinity, NaN stays NaN. */
export function floatBitsToHalf(f: number): number {
  const sign = (f >>> 16) & 0x8000;
  const magnitude = f & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >> 13) & 0x3ff);
  // 65520 is halfway between the largest float16 (65504) and the next power of two: it rounds to infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude >= 0x38800000) return sign | roundShift(magnitude - 0x38000000, 13);
  // Below 2^-14 the result is a subnormal, a multiple of 2^-24; at most half of that is 0.
  const shift = 126 - (magnitude >>> 23);
  return shift > 24 ? sign : sign | roundShift((magnitude & 0x7fffff) | 0x800000, shift);
}

/** The float16 bits nearest to `x` (rounded to float32 first), ties to even. */
export function floatToHalf(x: number): number {
  floats[0] = x;
  return floatBitsToHalf(bits[0]!);
}

/** The bfloat16 bits nearest to the float32 with bits `f`, ties to even; NaN stays (a quiet) NaN. */
export function floatBitsToBfloat(f: number): number {
  if ((f & 0x7fffffff) > 0x7f800000) return (f >>> 16) | 0x40;
  return (f + 0x7fff + ((f >>> 16) & 1)) >>> 16;
}

function roundShift(n: number, shift: number): number {
  const half = 2 ** (shift - 1) - 1;
  return (n + half + ((n >>> shift) & 1)) >>> shift;
}
