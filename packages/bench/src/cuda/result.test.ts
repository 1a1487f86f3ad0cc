import { expect, it } from "vitest";
import { boundOf, type CudaResult, summary } from "./result.js";

const size = { bytes: 1e9, layerWeights: 7e9, headWeights: 1e9 };
const bounds = { bytesPerSecond: 4e12, flopsPerSecond: 8e14 };

it("bounds decoding by reading the weights", () => {
  expect(boundOf(size, bounds, "decode")).toBeCloseTo(4000);
  expect(boundOf(size, bounds, "long")).toBeCloseTo(4000);
});

it("bounds prompts and batches by multiplying, logits where they are needed", () => {
  expect(boundOf(size, bounds, "prompt")).toBeCloseTo((512 * 8e14) / (2 * (7e9 * 512 + 1e9)));
  expect(boundOf(size, bounds, "batch")).toBeCloseTo(8e14 / (2 * 8e9));
  // With few weights to a byte, reading them takes longer.
  expect(boundOf({ ...size, bytes: 64e9 }, bounds, "batch")).toBeCloseTo(4000);
});

it("sets medians beside their bounds", () => {
  const result: CudaResult = {
    machine: "a machine",
    gpu: "NVIDIA H200",
    driver: null,
    rounds: 3,
    bounds: [bounds, { bytesPerSecond: 1e12, flopsPerSecond: 1e15 }, { bytesPerSecond: 9e12, flopsPerSecond: 1e14 }],
    models: {
      "8b": { model: "a model", size, samples: { decode: [3000, 2000, 1], long: [1000], prompt: [1], batch: [5e4] } },
    },
  };
  const { medians, shareOfBound, gpuBounds, measured } = JSON.parse(JSON.stringify(summary(result)));
  expect(gpuBounds).toEqual(bounds);
  expect(medians["8b"]).toEqual({ decode: 2000, long: 1000, prompt: 1, batch: 5e4 });
  expect(shareOfBound["8b"].decode).toBeCloseTo(0.5);
  expect(shareOfBound["8b"].batch).toBeCloseTo(1);
  expect(measured.models["8b"].samples.decode).toHaveLength(3);
});
