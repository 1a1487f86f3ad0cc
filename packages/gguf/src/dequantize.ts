import { GgufError } from "./gguf-error.js";
import { halfToFloat, halfToFloatBits } from "./half.js";
import { bytesFor, type TensorType, tensorTypes } from "./tensor-type.js";

/**
 * The values of `count` weights stored as `type`: exactly what the format says, without rounding.
 *
 * @param bytes the whole of the weights' bytes, as `GgufFile.readTensor` gives them
 * @param count number of weights, a multiple of the type's block size
 * @throws GgufError `invalid-argument` for an unknown type, or if `bytes` are not those of `count` weights
 */
export function dequantize(type: TensorType, bytes: Uint8Array, count: number): Float32Array {
  const info = tensorTypes[type];
  if (info === undefined) throw unknownType("dequantize", type);
  const expected = Number.isSafeInteger(count) && count >= 0 ? bytesFor(info, count) : undefined;
  if (expected === undefined) {
    throw new GgufError(
      "invalid-argument",
      `dequantize: count is ${count}; ${type} needs a multiple of its block size, ${info.blockSize}`,
    );
  }
  if (bytes.byteLength !== expected) {
    throw new GgufError(
      "invalid-argument",
      `dequantize: ${count} weights of ${type} are ${expected} bytes, but ${bytes.byteLength} were given; ` +
        "pass the tensor's bytes and its number of weights together",
    );
  }
  const out = new Float32Array(count);
  decoders[type](bytes, out);
  return out;
}

/** The error for a type name that is none of {@link tensorTypes}. */
export function unknownType(caller: string, type: unknown): GgufError {
  const known = Object.keys(tensorTypes).join(", ");
  return new GgufError("invalid-argument", `${caller}: unknown type ${JSON.stringify(type)}; the types are ${known}`);
}

const decoders: Readonly<Record<TensorType, (bytes: Uint8Array, out: Float32Array) => void>> = {
  F32: (bytes, out) => new Uint8Array(out.buffer).set(bytes),
  F16: (bytes, out) => decode16(bytes, out, halfToFloatBits),
  BF16: (bytes, out) => decode16(bytes, out, (b) => (b << 16) >>> 0),
  Q8_0: decodeQ8,
  Q4_0: decodeQ4,
  Q1_0: decodeQ1,
  Q2_0: (bytes, out) => decodeQ2(bytes, out, 16),
  Q2_0_G128: (bytes, out) => decodeQ2(bytes, out, 32),
  PQ2_0: (bytes, out) => decodeQ2(bytes, out, 32),
};

/** Works on bits, so that a NaN's payload survives. */
function decode16(bytes: Uint8Array, out: Float32Array, toFloatBits: (h: number) => number): void {
  const outBits = new Uint32Array(out.buffer);
  for (let i = 0; i < outBits.length; i++) outBits[i] = toFloatBits(read16(bytes, 2 * i));
}

function decodeQ8(bytes: Uint8Array, out: Float32Array): void {
  for (let i = 0, at = 0; i < out.length; at += 34) {
    const d = halfToFloat(read16(bytes, at));
    for (let j = 0; j < 32; j++) out[i++] = d * ((bytes[at + 2 + j]! << 24) >> 24);
  }
}

function decodeQ4(bytes: Uint8Array, out: Float32Array): void {
  for (let i = 0, at = 0; i < out.length; i += 32, at += 18) {
    const d = halfToFloat(read16(bytes, at));
    for (let j = 0; j < 16; j++) {
      const q = bytes[at + 2 + j]!;
      out[i + j] = d * ((q & 15) - 8);
      out[i + 16 + j] = d * ((q >> 4) - 8);
    }
  }
}

function decodeQ1(bytes: Uint8Array, out: Float32Array): void {
  for (let i = 0, at = 0; i < out.length; at += 18) {
    const d = halfToFloat(read16(bytes, at));
    for (let j = 0; j < 128; j++) out[i++] = (bytes[at + 2 + (j >> 3)]! >> (j & 7)) & 1 ? d : -d;
  }
}

function decodeQ2(bytes: Uint8Array, out: Float32Array, codeBytes: number): void {
  for (let i = 0, at = 0; i < out.length; at += 2 + codeBytes) {
    const d = halfToFloat(read16(bytes, at));
    for (let j = 0; j < 4 * codeBytes; j++) {
      const code = (bytes[at + 2 + (j >> 2)]! >> (2 * (j & 3))) & 3;
      out[i++] = d * (code - 1);
    }
  }
}

function read16(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}
