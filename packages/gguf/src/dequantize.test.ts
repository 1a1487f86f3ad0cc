import { describe, expect, it } from "vitest";
import { dequantize } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import type { TensorType } from "./tensor-type.js";

/** Blocks written out by hand from the format's description; 0x3800 is 0.5, 0x4200 is 3, 0xc000 is -2 as float16. */
const half = [0x00, 0x38];
const three = [0x00, 0x42];
const minusTwo = [0x00, 0xc0];

function zeros(count: number, set: Record<number, number>): number[] {
  return Array.from({ length: count }, (_, i) => set[i] ?? 0);
}

function values(type: TensorType, bytes: number[], count: number): number[] {
  // A view that starts at an odd byte, as a tensor's bytes may.
  const padded = new Uint8Array([255, ...bytes]);
  return [...dequantize(type, padded.subarray(1), count)];
}

describe("dequantize", () => {
  it("F32", () => {
    expect(values("F32", [0x00, 0x00, 0x80, 0x3f, 0x01, 0x00, 0x00, 0x80], 2)).toEqual([1, -(2 ** -149)]);
  });

  it("F16", () => {
    expect(values("F16", [...half, ...minusTwo, 0x01, 0x00, 0x00, 0xfc], 4)).toEqual([0.5, -2, 2 ** -24, -Infinity]);
  });

  it("BF16", () => {
    expect(values("BF16", [0x80, 0x3f, 0x49, 0xc0, 0xc0, 0x7f], 3)).toEqual([1, -3.140625, Number.NaN]);
  });

  it("Q8_0: d times a signed byte", () => {
    const codes = zeros(32, { 0: 1, 1: 0xff, 2: 0x7f, 3: 0x80, 31: 2 });
    const expected = zeros(32, { 0: 0.5, 1: -0.5, 2: 63.5, 3: -64, 31: 1 });
    expect(values("Q8_0", [...half, ...codes, ...minusTwo, ...zeros(32, { 5: 3 })], 64)).toEqual([
      ...expected,
      ...zeros(32, { 5: -6 }).map((x) => x || -0),
    ]);
  });

  it("Q4_0: low nibbles are weights 0 to 15, high nibbles 16 to 31, both less 8", () => {
    const codes = [0x80, 0x8f, 0x19, ...new Array(12).fill(0x88), 0xf7];
    const expected = zeros(32, { 0: -24, 1: 21, 2: 3, 18: -21, 15: -3, 31: 21 });
    expect(values("Q4_0", [...three, ...codes], 32)).toEqual(expected);
  });

  it("Q1_0: bits from the lowest up, 1 is +d and 0 is -d", () => {
    const bits = [0b0000_0101, ...zeros(14, {}), 0b1000_0000];
    const expected = new Array(128).fill(-3);
    for (const i of [0, 2, 127]) expected[i] = 3;
    expect(values("Q1_0", [...three, ...bits], 128)).toEqual(expected);
  });

  it.each([
    ["Q2_0", 16],
    ["Q2_0_G128", 32],
    ["PQ2_0", 32],
  ] as const)("%s: two-bit codes from the lowest up, -d, 0, +d, +2d", (type, codeBytes) => {
    const codes = [0b11_10_01_00, ...new Array(codeBytes - 2).fill(0b01_01_01_01), 0b00_01_01_11];
    const count = 4 * codeBytes;
    const expected = zeros(count, { 0: -3, 2: 3, 3: 6, [count - 4]: 6, [count - 1]: -3 });
    expect(values(type, [...three, ...codes], count)).toEqual(expected);
  });

  it("the second block of 64 has its own scale", () => {
    const block = (d: number[]) => [...d, ...new Array(16).fill(0b10_10_10_10)];
    const expected = [...new Array(64).fill(0.5), ...new Array(64).fill(-2)];
    expect(values("Q2_0", [...block(half), ...block(minusTwo)], 128)).toEqual(expected);
  });

  it.each([
    ["part of a block", "Q1_0", 18, 64, "dequantize: count is 64; Q1_0 needs a multiple of its block size, 128"],
    ["no number", "F32", 4, Number.NaN, "dequantize: count is NaN; F32 needs a multiple of its block size, 1"],
    [
      "other bytes than count needs",
      "Q2_0",
      34,
      128,
      "dequantize: 128 weights of Q2_0 are 36 bytes, but 34 were given; pass the tensor's bytes and its number of weights together",
    ],
    [
      "a count far beyond the bytes",
      "F32",
      4,
      2 ** 50,
      "dequantize: 1125899906842624 weights of F32 are 4503599627370496 bytes, but 4 were given; pass the tensor's bytes and its number of weights together",
    ],
  ] as const)("refuses %s", (_, type, byteLength, count, message) => {
    const call = () => dequantize(type, new Uint8Array(byteLength), count);
    expect(call).toThrow(new GgufError("invalid-argument", message));
    expect(call).toThrow(expect.objectContaining({ code: "invalid-argument" }));
  });

  it("refuses an unknown type", () => {
    expect(() => dequantize("Q4_K" as TensorType, new Uint8Array(144), 256)).toThrow(
      'dequantize: unknown type "Q4_K"; the types are F32, F16, BF16, Q8_0, Q4_0, Q1_0, Q2_0, Q2_0_G128, PQ2_0',
    );
  });
});
