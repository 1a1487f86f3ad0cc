import { quantize, type TensorType, tensorTypes } from "@niwaki/gguf";
import type { MatrixShape, VectorShape } from "./model-shape.js";
import { Random } from "./random.js";

const chunkBytes = 1 << 20;

/** The bytes of a random matrix, about a mebibyte at a time. */
export function* randomMatrix(shape: MatrixShape, seed: number): Generator<Uint8Array> {
  const { blockSize, blockBytes } = tensorTypes[shape.type];
  const random = new Random(seed);
  const scales = randomScales(random, shape.deviation);
  const fill = packedFillers[shape.type] ?? fillQuantized;
  const blocksAtOnce = Math.floor(chunkBytes / blockBytes);
  for (let left = (shape.inputs / blockSize) * shape.outputs; left > 0; left -= blocksAtOnce) {
    yield fill(shape.type, Math.min(left, blocksAtOnce), scales, random);
  }
}

/** The bytes of a random F32 norm: weights around 1, none near 0. */
export function randomVector(shape: VectorShape, seed: number): Uint8Array {
  const random = new Random(seed);
  return quantize(
    "F32",
    Float32Array.from({ length: shape.length }, () => Math.exp(0.2 * random.normal())),
  );
}

type Filler = (type: TensorType, blocks: number, scales: Float32Array, random: Random) => Uint8Array;

/** The 1-bit and 2-bit types are made in their packed form: a gigabyte of them takes seconds. */
const packedFillers: Partial<Record<TensorType, Filler>> = {
  Q1_0: fillBits,
  Q2_0: fillCodes,
  Q2_0_G128: fillCodes,
  PQ2_0: fillCodes,
};

function fillBits(type: TensorType, blocks: number, scales: Float32Array, random: Random): Uint8Array {
  const { blockBytes } = tensorTypes[type];
  const halfScales = halves(scales);
  const words = new Uint16Array((blocks * blockBytes) / 2);
  for (let at = 0; at < words.length; ) {
    words[at++] = halfScales[random.bits() >>> 24]!;
    for (let end = at + blockBytes / 2 - 1; at < end; ) {
      const bits = random.bits();
      words[at++] = bits;
      words[at++] = bits >>> 16;
    }
  }
  return new Uint8Array(words.buffer);
}

function fillCodes(type: TensorType, blocks: number, scales: Float32Array, random: Random): Uint8Array {
  const { blockBytes } = tensorTypes[type];
  const halfScales = halves(scales);
  const words = new Uint16Array((blocks * blockBytes) / 2);
  for (let at = 0; at < words.length; ) {
    words[at++] = halfScales[random.bits() >>> 24]!;
    for (let end = at + blockBytes / 2 - 1; at < end; ) {
      const bits = random.bits();
      words[at++] = fourCodes[bits & 0xfff]! | (fourCodes[(bits >>> 12) & 0xfff]! << 8);
    }
  }
  return new Uint8Array(words.buffer);
}

/**
 * Four 2-bit codes from twelve random bits. Of eight equally likely codes three are -d, three 0, one +d and one +2d, so
 * every code occurs, the mean is 0 and the variance d².
 */
const fourCodes = Uint8Array.from({ length: 1 << 12 }, (_, bits) => {
  const code = (at: number) => [0, 0, 0, 1, 1, 1, 2, 3][(bits >>> (3 * at)) & 7]! << (2 * at);
  return code(0) | code(1) | code(2) | code(3);
});

function fillQuantized(type: TensorType, blocks: number, scales: Float32Array, random: Random): Uint8Array {
  const values = new Float32Array(blocks * tensorTypes[type].blockSize);
  for (let i = 0; i < values.length; i++) {
    values[i] = scales[(i >>> 7) & 255]! * random.normal();
  }
  return quantize(type, values);
}

/** 256 scales around `deviation`, log-normally spread by a quarter, so that blocks differ as in trained models. */
function randomScales(random: Random, deviation: number): Float32Array {
  return Float32Array.from({ length: 256 }, () => deviation * Math.exp(0.25 * random.normal()));
}

function halves(values: Float32Array): Uint16Array {
  return new Uint16Array(quantize("F16", values).buffer);
}
