import { describe, expect, test } from "vitest";
import { klDivergence } from "./kl-divergence.js";

const logs = (...probabilities: number[]) => Float64Array.from(probabilities, Math.log);

describe("klDivergence", () => {
  test("is zero for the same distribution, whatever is added to all logits of a position", () => {
    const { mean, max } = klDivergence(Float32Array.of(1, 2, 3, 4, 0, 1), Float32Array.of(3, 4, 5, 3, -1, 0), 3);
    expect(mean).toBeCloseTo(0, 15);
    expect(max).toBeCloseTo(0, 15);
  });

  test("is the sum of p ln(p / q), in the order reference, ours", () => {
    const expected = 0.5 * Math.log(0.5 / 0.25) + 0.5 * Math.log(0.5 / 0.75);
    expect(klDivergence(logs(0.5, 0.5), logs(0.25, 0.75), 2).mean).toBeCloseTo(expected, 15);
    const swapped = 0.25 * Math.log(0.25 / 0.5) + 0.75 * Math.log(0.75 / 0.5);
    expect(klDivergence(logs(0.25, 0.75), logs(0.5, 0.5), 2).mean).toBeCloseTo(swapped, 15);
  });

  test("takes mean and maximum over positions", () => {
    const reference = logs(0.5, 0.5, 1, 0, 0.5, 0.5);
    const ours = logs(0.5, 0.5, 0.5, 0.5, 0.25, 0.75);
    const last = 0.5 * Math.log(2) + 0.5 * Math.log(2 / 3);
    const { mean, max } = klDivergence(reference, ours, 2);
    expect(mean).toBeCloseTo((Math.log(2) + last) / 3, 15);
    expect(max).toBeCloseTo(Math.log(2), 15);
  });

  test("does not overflow on large logits", () => {
    const { mean } = klDivergence(Float32Array.of(10_000, 10_000), Float32Array.of(10_000, 9_000), 2);
    expect(mean).toBeCloseTo(500 - Math.log(2), 9);
  });

  test("is infinite where ours rules out what the reference allows, NaN where a logit is NaN", () => {
    expect(klDivergence(logs(0.5, 0.5), logs(1, 0), 2).mean).toBe(Number.POSITIVE_INFINITY);
    expect(klDivergence(Float32Array.of(0, 0, 0, 0), Float32Array.of(0, 0, 0, Number.NaN), 2)).toEqual({
      mean: Number.NaN,
      max: Number.NaN,
    });
  });

  test("refuses arrays of other shapes", () => {
    expect(() => klDivergence(new Float32Array(6), new Float32Array(3), 3)).toThrow(RangeError);
    expect(() => klDivergence(new Float32Array(5), new Float32Array(5), 3)).toThrow(
      "klDivergence needs two [positions, 3] arrays of logits, got 5 and 5 values",
    );
    expect(() => klDivergence(new Float32Array(0), new Float32Array(0), 3)).toThrow(RangeError);
  });
});
