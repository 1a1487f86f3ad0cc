import { describe, expect, test } from "vitest";
import { Rope, type RopeScaling } from "./rope.js";

/** Where the pair `i` of a head of 8 dimensions lands at `position`, starting as [1, 0]. */
function rotate(scaling: RopeScaling, position: number, i: number, base = 10_000): { length: number; angle: number } {
  const x = new Float64Array(8 * (position + 1));
  x[8 * position + i] = 1;
  new Rope(8, base, scaling).apply(x, 1);
  const [a, b] = [x[8 * position + i]!, x[8 * position + i + 4]!];
  return { length: Math.hypot(a, b), angle: Math.atan2(b, a) };
}

describe("Rope", () => {
  test("rotates dimension i with i + headDim / 2 by position * base^(-2i / headDim)", () => {
    for (const [i, frequency] of [1, 0.1, 0.01, 0.001].entries()) {
      const { length, angle } = rotate({ type: "none" }, 3, i);
      expect(length).toBeCloseTo(1, 14);
      expect(angle).toBeCloseTo(3 * frequency, 14);
    }
  });

  test("rotates every head alike", () => {
    const x = Float64Array.of(0, 0, 0, 0, 1, 0, 1, 0); // position 1 of two heads of two dimensions
    new Rope(2, 10_000, { type: "none" }).apply(x, 2);
    expect([...x]).toEqual([0, 0, 0, 0, Math.cos(1), Math.sin(1), Math.cos(1), Math.sin(1)]);
  });

  test("linear scaling divides the position", () => {
    for (let i = 0; i < 4; i++) {
      expect(rotate({ type: "linear", factor: 4 }, 8, i)).toEqual(rotate({ type: "none" }, 2, i));
    }
  });

  test("YaRN keeps fast pairs, interpolates slow ones, ramps between, and lengthens by 0.1 ln factor + 1", () => {
    // Pairs turn L / (2 pi base^(2i/8)) times in a context of L: with base e^4 and L = 2 pi e^2 that is e^(2 - i).
    const base = Math.exp(4);
    const originalContext = 2 * Math.PI * Math.exp(2);
    const yarn = {
      type: "yarn",
      factor: 2,
      originalContext,
      betaFast: Math.exp(1.5),
      betaSlow: Math.exp(-0.5),
    } as const;
    // The ramp goes from floor(0.5) = 0 to ceil(2.5) = 3.
    for (const [i, ramp] of [0, 1 / 3, 2 / 3, 1].entries()) {
      const { length, angle } = rotate(yarn, 1, i, base);
      expect(length).toBeCloseTo(0.1 * Math.log(2) + 1, 14);
      expect(angle).toBeCloseTo(Math.exp(-i) * (1 - ramp / 2), 14);
    }
  });
});
