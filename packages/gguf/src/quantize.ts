import { unknownType } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { floatBitsToBfloat, floatBitsToHalf, floatToHalf } from "./half.js";
import { bytesFor, type TensorType, tensorTypes } from "./tensor-type.js";

/**
 * The bytes of `values` stored as `type`, by the format's reference quantizer. Scales are computed in float32 and rounded
 * to float16, ties to even.
 *
 * | type | scale `d` of a block | weight |
 * |---|---|---|
 * | `F32`, `F16`, `BF16` | | nearest, ties to even; infinities and NaN stay |
 * | `Q8_0` | max\|x\| / 127 | round(x / d) |
 * | `Q4_0` | x of the largest \|x\|, / −8 | min(15, ⌊x / d + 8.5⌋) |
 * | `Q1_0` | mean\|x\| | x ≥ 0 → +d, else −d |
 * | `Q2_0`, `Q2_0_G128`, `PQ2_0` | max\|x\| | round(x / d) ∈ {−1, 0, 1}; the format's +2d is never produced |
 *
 * So values that are already −d, 0 or d (d a float16) pass through the two-bit types unchanged. Ties of `round` go away
 * from zero.
 *
 * @param values whole blocks: a multiple of the type's block size
 * @throws GgufError `invalid-argument` for an unknown type, part of a block, or (in block types) a value that is not finite
 *   or so large that its scale is no float16
 */
export function quantize(type: TensorType, values: Float32Array): Uint8Array {
  const info = tensorTypes[type];
  if (info === undefined) throw unknownType("quantize", type);
  const byteLength = bytesFor(info, values.length);
  if (byteLength === undefined) {
    throw new GgufError(
      "invalid-argument",
      `quantize: ${values.length} values are no whole number of ${type} blocks; pass a multiple of ${info.blockSize}`,
    );
  }
  const out = new Uint8Array(byteLength);
  encoders[type](values, out);
  return out;
}

const encoders: Readonly<Record<TensorType, (values: Float32Array, out: Uint8Array) => void>> = {
  F32: (values, out) => out.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength)),
  F16: (values, out) => encode16(values, out, floatBitsToHalf),
  BF16: (values, out) => encode16(values, out, floatBitsToBfloat),
  Q8_0: encodeQ8,
  Q4_0: encodeQ4,
  Q1_0: encodeQ1,
  Q2_0: (values, out) => encodeQ2("Q2_0", values, out),
  Q2_0_G128: (values, out) => encodeQ2("Q2_0_G128", values, out),
  PQ2_0: (values, out) => encodeQ2("PQ2_0", values, out),
};

function encode16(values: Float32Array, out: Uint8Array, fromFloatBits: (f: number) => number): void {
  const valueBits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < valueBits.length; i++) write16(out, 2 * i, fromFloatBits(valueBits[i]!));
}

function encodeQ8(values: Float32Array, out: Uint8Array): void {
  for (let i = 0, at = 0; i < values.length; i += 32, at += 34) {
    const d = Math.fround(Math.abs(largest(values, i, 32)) / 127);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    writeScale("Q8_0", values, i, 32, out, at, d);
    for (let j = 0; j < 32; j++) out[at + 2 + j] = round(Math.fround(values[i + j]! * inverse));
  }
}

function encodeQ4(values: Float32Array, out: Uint8Array): void {
  for (let i = 0, at = 0; i < values.length; i += 32, at += 18) {
    const d = Math.fround(largest(values, i, 32) / -8);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    writeScale("Q4_0", values, i, 32, out, at, d);
    const code = (x: number) => Math.min(15, Math.trunc(Math.fround(Math.fround(x * inverse) + 8.5)));
    for (let j = 0; j < 16; j++) out[at + 2 + j] = code(values[i + j]!) | (code(values[i + 16 + j]!) << 4);
  }
}

function encodeQ1(values: Float32Array, out: Uint8Array): void {
  for (let i = 0, at = 0; i < values.length; i += 128, at += 18) {
    let sum = 0;
    for (let j = 0; j < 128; j++) sum = Math.fround(sum + Math.abs(values[i + j]!));
    writeScale("Q1_0", values, i, 128, out, at, Math.fround(sum / 128));
    for (let j = 0; j < 128; j++) {
      if (values[i + j]! >= 0) out[at + 2 + (j >> 3)]! |= 1 << (j & 7);
    }
  }
}

function encodeQ2(type: TensorType, values: Float32Array, out: Uint8Array): void {
  const { blockSize, blockBytes } = tensorTypes[type];
  for (let i = 0, at = 0; i < values.length; i += blockSize, at += blockBytes) {
    const d = Math.abs(largest(values, i, blockSize));
    writeScale(type, values, i, blockSize, out, at, d);
    for (let j = 0; j < blockSize; j++) {
      const code = d === 0 ? 1 : round(values[i + j]! / d) + 1;
      out[at + 2 + (j >> 2)]! |= code << (2 * (j & 3));
    }
  }
}

/** The value of the largest magnitude in a block (the first of several), NaN if there is one. */
function largest(values: Float32Array, start: number, length: number): number {
  let found = 0;
  for (let i = start; i < start + length; i++) {
    const x = values[i]!;
    if (Number.isNaN(x)) return x;
    if (Math.abs(x) > Math.abs(found)) found = x;
  }
  return found;
}

function round(x: number): number {
  return Math.sign(x) * Math.floor(Math.abs(x) + 0.5);
}

function writeScale(
  type: TensorType,
  values: Float32Array,
  start: number,
  length: number,
  out: Uint8Array,
  at: number,
  d: number,
): void {
  const half = floatToHalf(d);
  if ((half & 0x7c00) === 0x7c00) {
    const bad = values.subarray(start, start + length).findIndex((x) => !Number.isFinite(x));
    throw new GgufError(
      "invalid-argument",
      bad >= 0
        ? `quantize: value ${start + bad} is ${values[start + bad]}, which ${type} cannot hold; repair the weights first`
        : `quantize: the block at value ${start} needs the scale ${d}, beyond float16 (65504); scale the weights down or use F32`,
    );
  }
  write16(out, at, half);
}

function write16(out: Uint8Array, at: number, value: number): void {
  out[at] = value & 0xff;
  out[at + 1] = value >>> 8;
}
