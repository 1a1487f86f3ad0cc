import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { dequantize } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { quantize } from "./quantize.js";
import { type TensorType, tensorTypes } from "./tensor-type.js";

const allTypes = Object.keys(tensorTypes) as TensorType[];
const q2Types = ["Q2_0", "Q2_0_G128", "PQ2_0"] as const;

function block(length: number, set: Record<number, number>, rest = 0): Float32Array {
  return Float32Array.from({ length }, (_, i) => set[i] ?? rest);
}

describe("quantize", () => {
  it("Q1_0: d is the mean magnitude, a bit is 1 for x >= 0, also for -0", () => {
    const x = block(128, { 0: 64, 1: -64, 9: -0, 127: 128 }, 0);
    const bytes = quantize("Q1_0", x);
    // mean = 256 / 128 = 2; all bits are set but that of value 1
    expect([...bytes]).toEqual([0x00, 0x40, 0b1111_1101, ...new Array(15).fill(0xff)]);
  });

  it("Q1_0: a tie of d in float16 goes to even", () => {
    // mean = 1 + 2^-11, halfway between 1 and the next float16
    expect([...quantize("Q1_0", block(128, {}, 1 + 2 ** -11)).subarray(0, 2)]).toEqual([0x00, 0x3c]);
    expect([...quantize("Q1_0", block(128, {}, 1 + 3 * 2 ** -11)).subarray(0, 2)]).toEqual([0x02, 0x3c]);
  });

  it.each(q2Types)("%s: d is the largest magnitude, codes are -1, 0 and 1", (type) => {
    const { blockSize } = tensorTypes[type];
    const x = block(blockSize, { 0: -4, 1: 2, 2: -2, 3: 1.9, 4: -1.9, 5: 4 });
    const bytes = quantize(type, x);
    expect([...bytes]).toEqual([
      0x00,
      0x44,
      0b01_00_10_00,
      0b01_01_10_01,
      ...new Array(blockSize / 4 - 2).fill(0b01_01_01_01),
    ]);
  });

  it("Q8_0: d is the largest magnitude / 127", () => {
    const bytes = quantize("Q8_0", block(32, { 0: 127, 1: -127, 2: 0.5, 3: -1.5, 4: 0.49 }));
    expect([...bytes]).toEqual([0x00, 0x3c, 127, 129, 1, 254, ...new Array(28).fill(0)]);
  });

  it("Q4_0: d is the signed largest value / -8", () => {
    const bytes = quantize("Q4_0", block(32, { 0: -8, 1: 8, 2: 7, 16: 1, 17: -0.4 }));
    expect([...bytes]).toEqual([0x00, 0x3c, 0x90, 0x8f, 0x8f, ...new Array(13).fill(0x88)]);
  });

  it("F32, F16 and BF16 keep infinities and NaN", () => {
    const x = Float32Array.of(Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, 1, 1e6, -0);
    expect(dequantize("F32", quantize("F32", x), 6)).toEqual(x);
    expect([...dequantize("F16", quantize("F16", x), 6)]).toEqual([Infinity, -Infinity, NaN, 1, Infinity, -0]);
    expect([...dequantize("BF16", quantize("BF16", x), 6)]).toEqual([Infinity, -Infinity, NaN, 1, 999424, -0]);
  });

  it.each(allTypes)("%s: all zeros stay zeros", (type) => {
    const x = new Float32Array(256);
    expect([...dequantize(type, quantize(type, x), 256)].every((value) => Math.abs(value) === 0)).toBe(true);
  });

  it.each(allTypes)("%s: what was quantized once stays as it is", (type) => {
    const float = fc.float({ noNaN: true, noDefaultInfinity: true, min: -1000, max: 1000 });
    fc.assert(
      fc.property(fc.array(float, { minLength: 128, maxLength: 128 }), (list) => {
        const once = dequantize(type, quantize(type, Float32Array.from(list)), 128);
        // Q8_0 and Q4_0 may find a slightly other scale for values that are on the grid already.
        const tolerance = type === "Q8_0" || type === "Q4_0" ? 2 ** -10 : 0;
        const twice = dequantize(type, quantize(type, once), 128);
        const scale = Math.max(...once.map(Math.abs));
        for (let i = 0; i < 128; i++) expect(Math.abs(once[i]! - twice[i]!)).toBeLessThanOrEqual(tolerance * scale);
      }),
      { seed: 2, numRuns: 200 },
    );
  });

  it.each([
    ["Q8_0", 0.5 / 127],
    ["Q4_0", 1 / 8],
    ["Q2_0", 0.5],
    ["PQ2_0", 0.5],
  ] as const)("%s: no value is farther off than %d of the largest", (type, bound) => {
    const float = fc.float({ noNaN: true, min: -100, max: 100 });
    fc.assert(
      fc.property(fc.array(float, { minLength: 128, maxLength: 128 }), (list) => {
        const x = Float32Array.from(list);
        const y = dequantize(type, quantize(type, x), 128);
        const { blockSize } = tensorTypes[type];
        for (let i = 0; i < 128; i += blockSize) {
          const largest = Math.max(...x.subarray(i, i + blockSize).map(Math.abs));
          // Rounding the scale to float16 adds 2^-11 of it, and 2^-24 where it is subnormal, times the largest code.
          const slack = largest * 2 ** -11 + 127 * 2 ** -25;
          for (let j = i; j < i + blockSize; j++)
            expect(Math.abs(x[j]! - y[j]!)).toBeLessThanOrEqual(bound * largest + slack);
        }
      }),
      { seed: 3, numRuns: 200 },
    );
  });

  it.each([
    [
      "Q1_0",
      block(128, { 3: Number.NaN }),
      "quantize: value 3 is NaN, which Q1_0 cannot hold; repair the weights first",
    ],
    [
      "Q2_0",
      block(128, { 70: Number.POSITIVE_INFINITY }),
      "quantize: value 70 is Infinity, which Q2_0 cannot hold; repair the weights first",
    ],
    [
      "Q8_0",
      block(32, { 1: Number.NaN }),
      "quantize: value 1 is NaN, which Q8_0 cannot hold; repair the weights first",
    ],
    [
      "Q4_0",
      block(32, { 1: Number.NaN }),
      "quantize: value 1 is NaN, which Q4_0 cannot hold; repair the weights first",
    ],
    [
      "Q1_0",
      block(128, {}, 70000),
      "quantize: the block at value 0 needs the scale 70000, beyond float16 (65504); scale the weights down or use F32",
    ],
    ["Q1_0", block(64, {}), "quantize: 64 values are no whole number of Q1_0 blocks; pass a multiple of 128"],
  ] as const)("%s refuses what it cannot hold", (type, x, message) => {
    const call = () => quantize(type, x);
    expect(call).toThrow(new GgufError("invalid-argument", message));
    expect(call).toThrow(expect.objectContaining({ code: "invalid-argument" }));
  });

  it("takes a view into a larger array", () => {
    expect([...quantize("F32", Float32Array.of(9, 1, 2).subarray(1))]).toEqual([0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]);
  });
});
