import { describe, expect, test } from "vitest";
import { Random, randomTokens } from "./random.js";

describe("Random", () => {
  test("every bit is set half of the time", () => {
    const random = new Random(1);
    const ones = new Array<number>(32).fill(0);
    for (let n = 0; n < 10_000; n++) {
      const bits = random.bits();
      for (let bit = 0; bit < 32; bit++) ones[bit]! += (bits >>> bit) & 1;
    }
    for (const count of ones) expect(Math.abs(count - 5_000)).toBeLessThan(250); // five standard deviations
  });

  test("normal has mean 0 and variance 1", () => {
    const random = new Random(2);
    let sum = 0;
    let squares = 0;
    for (let n = 0; n < 20_000; n++) {
      const x = random.normal();
      sum += x;
      squares += x * x;
    }
    expect(Math.abs(sum / 20_000)).toBeLessThan(0.035);
    expect(Math.abs(squares / 20_000 - 1)).toBeLessThan(0.05);
  });
});

describe("randomTokens", () => {
  test("gives ids of the vocabulary, the same for the same seed", () => {
    const tokens = randomTokens(1_000, 7, 3);
    expect(tokens).toHaveLength(1_000);
    expect([...new Set(tokens)].sort()).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(randomTokens(1_000, 7, 3)).toEqual(tokens);
    expect(randomTokens(1_000, 7, 4)).not.toEqual(tokens);
  });
});
