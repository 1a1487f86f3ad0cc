import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { floatBitsToBfloat, floatToHalf, halfToFloat, halfToFloatBits } from "./half.js";

/** IEEE 754 binary16, straight from the standard's definition. */
function binary16(h: number): number {
  const sign = h & 0x8000 ? -1 : 1;
  const exponent = (h >> 10) & 31;
  const mantissa = h & 1023;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1024 + mantissa) * 2 ** (exponent - 25);
}

function floatBits(x: number): number {
  return new Uint32Array(new Float32Array([x]).buffer)[0]!;
}

describe("halfToFloat", () => {
  it("is exact for all 65536 float16", () => {
    for (let h = 0; h < 65536; h++) {
      if (!Object.is(halfToFloat(h), binary16(h))) expect.fail(`${h}: ${halfToFloat(h)}, not ${binary16(h)}`);
    }
  });

  it("keeps the payload of a NaN", () => {
    expect(halfToFloatBits(0x7e01)).toBe(0x7fc02000);
    expect(halfToFloatBits(0xfd55)).toBe(0xffaaa000);
  });
});

describe("floatToHalf", () => {
  it("gives every float16 back", () => {
    for (let h = 0; h < 65536; h++) {
      if (!Number.isNaN(binary16(h)) && floatToHalf(binary16(h)) !== h)
        expect.fail(`${h}: ${floatToHalf(binary16(h))}`);
    }
  });

  it("rounds to the nearest, ties to even, between all neighbors", () => {
    for (let h = 0; h < 0x7bff; h++) {
      const middle = (binary16(h) + binary16(h + 1)) / 2;
      // All of these are float32: a middle has one bit more than a float16, its neighbors are 12 bits finer.
      const nudge = (binary16(h + 1) - binary16(h)) / 2 ** 12;
      const found = [floatToHalf(middle - nudge), floatToHalf(middle), floatToHalf(middle + nudge)];
      const expected = [h, h + (h & 1), h + 1];
      if (found.join() !== expected.join()) expect.fail(`${h}: ${found}, not ${expected}`);
      if (floatToHalf(-middle) !== (0x8000 | expected[1]!)) expect.fail(`-${h}`);
    }
  });

  it.each([
    [65504, 0x7bff],
    [65519.99609375, 0x7bff],
    [65520, 0x7c00],
    [1e30, 0x7c00],
    [Number.NEGATIVE_INFINITY, 0xfc00],
    [2 ** -25, 0],
    [2 ** -25 * (1 + 2 ** -23), 1],
    [-(2 ** -149), 0x8000],
    [-0, 0x8000],
  ])("%d is %d", (x, h) => {
    expect(floatToHalf(x)).toBe(h);
  });

  it("keeps NaN a NaN", () => {
    expect(halfToFloat(floatToHalf(Number.NaN))).toBeNaN();
  });
});

describe("floatBitsToBfloat", () => {
  it("rounds to the nearest, ties to even", () => {
    const nearest = fc.property(
      fc.float({ noNaN: true, noDefaultInfinity: true, max: Math.fround(3e38), min: -Math.fround(3e38) }),
      (x) => {
        const value = (b: number) => new Float32Array(new Uint32Array([b << 16]).buffer)[0]!;
        const b = floatBitsToBfloat(floatBits(x));
        const away = (other: number) => Math.abs(value(other) - x);
        expect(away(b)).toBeLessThanOrEqual(Math.min(away(b + 1), (b & 0x7fff) === 0 ? away(b) : away(b - 1)));
      },
    );
    fc.assert(nearest, { seed: 1, numRuns: 2000 });
    expect(floatBitsToBfloat(0x3f808000)).toBe(0x3f80);
    expect(floatBitsToBfloat(0x3f818000)).toBe(0x3f82);
    expect(floatBitsToBfloat(0x3f808001)).toBe(0x3f81);
  });

  it.each([
    [0x7f7fffff, 0x7f80],
    [0xff800000, 0xff80],
    [0x80000000, 0x8000],
    [0x7f800001, 0x7fc0],
  ])("bits %d are %d", (bits, b) => {
    expect(floatBitsToBfloat(bits)).toBe(b);
  });
});
