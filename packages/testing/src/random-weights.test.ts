import { dequantize, type TensorType, tensorTypes } from "@niwaki/gguf";
import { describe, expect, test } from "vitest";
import { randomMatrix, randomVector } from "./random-weights.js";

const types = Object.keys(tensorTypes) as TensorType[];

function weights(type: TensorType, inputs: number, outputs: number, deviation: number, seed = 1): Float32Array {
  const chunks = [...randomMatrix({ name: "w", inputs, outputs, type, deviation }, seed)];
  return dequantize(type, Buffer.concat(chunks), inputs * outputs);
}

describe("randomMatrix", () => {
  test.each(types)("%s has mean 0 and the deviation asked for", (type) => {
    const values = weights(type, 512, 300, 0.05);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
    expect(Math.abs(mean)).toBeLessThan(0.0007); // more than five standard errors
    expect(deviation).toBeGreaterThan(0.045);
    expect(deviation).toBeLessThan(0.062);
  });

  test.each(["Q1_0", "Q2_0", "PQ2_0", "Q8_0"] as const)("%s fills every chunk of a large matrix", (type) => {
    const { blockSize, blockBytes } = tensorTypes[type];
    const sizes = [...randomMatrix({ name: "w", inputs: 4096, outputs: 2100, type, deviation: 1 }, 7)].map(
      (c) => c.length,
    );
    expect(sizes.length).toBeGreaterThan(1);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(1 << 20);
    expect(sizes.reduce((a, b) => a + b)).toBe(((4096 * 2100) / blockSize) * blockBytes);
  });

  test("the two-bit types use all four codes: -d, 0, +d and +2d", () => {
    const [block, ...rest] = [...randomMatrix({ name: "w", inputs: 64, outputs: 5000, type: "Q2_0", deviation: 1 }, 3)];
    expect(rest).toEqual([]);
    const counts = [0, 0, 0, 0];
    for (let at = 0; at < block!.length; at++) {
      if (at % 18 < 2) continue;
      for (let shift = 0; shift < 8; shift += 2) counts[(block![at]! >> shift) & 3]! += 1;
    }
    for (const [code, share] of [3 / 8, 3 / 8, 1 / 8, 1 / 8].entries()) {
      expect(counts[code]! / 320_000).toBeCloseTo(share, 2);
    }
  });

  test("scales differ from block to block", () => {
    const values = weights("Q1_0", 128, 200, 1);
    const scales = new Set(Array.from({ length: 200 }, (_, row) => Math.abs(values[row * 128]!)));
    expect(scales.size).toBeGreaterThan(100);
  });

  test("the seed decides", () => {
    expect(weights("Q1_0", 128, 4, 1, 5)).toEqual(weights("Q1_0", 128, 4, 1, 5));
    expect(weights("Q1_0", 128, 4, 1, 5)).not.toEqual(weights("Q1_0", 128, 4, 1, 6));
  });
});

test("randomVector is positive and around 1", () => {
  const values = dequantize("F32", randomVector({ name: "norm", length: 1000 }, 1), 1000);
  expect(Math.min(...values)).toBeGreaterThan(0.3);
  expect(Math.max(...values)).toBeLessThan(3);
  expect(new Set(values).size).toBeGreaterThan(990);
});
