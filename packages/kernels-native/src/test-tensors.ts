import type { TensorSource } from "./tensor-source.js";
import { random } from "./test-random.js";
import type { WeightType } from "./weight-type.js";

/** A tensor's bytes and, from the formats' definitions, its weights. */
export interface Tensor extends TensorSource {
  data: Uint8Array;
  weights: Float32Array;
}

const blocks: Record<WeightType, [weights: number, bytes: number]> = {
  F32: [1, 4],
  F16: [1, 2],
  BF16: [1, 2],
  Q8_0: [32, 34],
  Q4_0: [32, 18],
  Q1_0: [128, 18],
  Q2_0: [64, 18],
  Q2_0_G128: [128, 34],
};

export const weightTypes = Object.keys(blocks) as WeightType[];

/** Random weights of about 0.01 to 0.1. */
export function randomTensor(name: string, type: WeightType, rows: number, columns: number, seed: number): Tensor {
  const next = random(seed);
  const [block, bytes] = blocks[type];
  const count = (rows * columns) / block;
  const data = new Uint8Array(count * bytes);
  const view = new DataView(data.buffer);
  for (let at = 0; at < data.length; at += bytes) {
    if (type === "F32") view.setFloat32(at, (next() - 0.5) * 0.2, true);
    // 2^-6 … 2^-3.5 either way: exponents 9 to 11 of float16, 121 to 123 of bfloat16
    else if (type === "F16") view.setUint16(at, sign(next) | ((9 + 2 * next()) * 1024), true);
    else if (type === "BF16") view.setUint16(at, sign(next) | ((121 + 2 * next()) * 128), true);
    else {
      const scale = type === "Q8_0" ? 2 : type === "Q4_0" ? 6 : 9; // the exponent: int8 and nibbles are wider than bits
      view.setUint16(at, (scale + 2 * next()) * 1024, true);
      for (let i = at + 2; i < at + bytes; i++) data[i] = next() * 256;
    }
  }
  return { name, type, rows, columns, data, weights: dequantize(type, data, rows * columns) };
}

export function f32Tensor(name: string, rows: number, columns: number, weights: Float32Array): Tensor {
  return { name, type: "F32", rows, columns, data: new Uint8Array(weights.buffer.slice(0)), weights };
}

function sign(next: () => number): number {
  return next() < 0.5 ? 0x8000 : 0;
}

function dequantize(type: WeightType, data: Uint8Array, count: number): Float32Array {
  const [block, bytes] = blocks[type];
  const view = new DataView(data.buffer);
  const weight = (at: number, j: number): number => {
    const d = half(view.getUint16(at, true));
    switch (type) {
      case "F32":
        return view.getFloat32(at, true);
      case "F16":
        return d;
      case "BF16":
        return bfloat(view.getUint16(at, true));
      case "Q8_0":
        return d * view.getInt8(at + 2 + j);
      case "Q4_0":
        return d * ((j < 16 ? data[at + 2 + j]! & 15 : data[at + 2 + j - 16]! >> 4) - 8);
      case "Q1_0":
        return (data[at + 2 + (j >> 3)]! >> (j & 7)) & 1 ? d : -d;
      default:
        return d * (((data[at + 2 + (j >> 2)]! >> (2 * (j & 3))) & 3) - 1);
    }
  };
  return Float32Array.from({ length: count }, (_, i) => weight(Math.floor(i / block) * bytes, i % block));
}

function half(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  const size = exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -size : size;
}

function bfloat(bits: number): number {
  return new Float32Array(new Uint32Array([bits << 16]).buffer)[0]!;
}
