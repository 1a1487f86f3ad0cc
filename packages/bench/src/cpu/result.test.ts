import { expect, it } from "vitest";
import { type CpuResult, packedToFile, ratioOf, readBoundOf, shareOfReading, summary } from "./result.js";

const comparison = {
  model: "a model",
  fileBytes: 4e9,
  niwaki: { decode: [10, 14, 12], load: [1, 3, 2], batch: [64], weightBytes: [3e9] },
  nodeLlamaCpp: { decode: [3], load: [4], batch: [8] },
  reading: {
    decode: [
      { decoding: 24e9, alone: 40e9 },
      { decoding: 16e9, alone: 20e9 },
      { decoding: 20e9, alone: 50e9 },
    ],
  },
};
const ternary = { ...comparison, nodeLlamaCpp: {}, reading: { decode: [{ decoding: 45e9, alone: 60e9 }] } };
const result: CpuResult = {
  machine: "a machine",
  threads: 2,
  rounds: 3,
  promptTokens: 512,
  comparisons: { "8b": comparison },
  alone: { ternary },
  rows: {
    model: "a model",
    seconds: [1, 2, 3],
    outliers: { overTrend: { index: 0, ratio: 1 }, rise: { index: 1, ratio: 2 }, fall: { index: 1, ratio: 2 / 3 } },
  },
};

it("divides our median by theirs", () => {
  expect(ratioOf(comparison, "decode")).toBe(4);
  expect(ratioOf(comparison, "batch")).toBe(8);
  expect(ratioOf(comparison, "load")).toBe(0.5);
});

it("sets our 8-bit KV beside the peer's float16", () => {
  const kv8 = { ...comparison, niwaki: { longKv8: [60] }, nodeLlamaCpp: { long: [15] } };
  expect(ratioOf(kv8, "longKv8")).toBe(4);
  expect(ratioOf(kv8, "long")).toBeUndefined();
});

it("sets the weights in memory beside the file", () => {
  expect(packedToFile(comparison)).toBe(0.75);
});

it("has no ratio for what was not measured", () => {
  expect(ratioOf(comparison, "long")).toBeUndefined();
});

it("compares what decoding reads with reading alone at the same moment", () => {
  expect(shareOfReading(comparison, "decode")).toBe(0.6);
  expect(shareOfReading(comparison, "long")).toBeUndefined();
  expect(readBoundOf(result)).toBe(45e9);
});

it("gives ratios, medians and samples as one object of JSON", () => {
  const object = JSON.parse(JSON.stringify(summary(result)));
  expect(object.ratios).toEqual({ "8b": { decode: 4, batch: 8, load: 0.5 } });
  expect(object.medians).toEqual({
    "8b": { niwaki: { decode: 12, batch: 64, load: 2 }, nodeLlamaCpp: { decode: 3, batch: 8, load: 4 } },
  });
  expect(object.readBound).toBe(45e9);
  expect(object.shareOfReading).toEqual({ "8b": { decode: 0.6 }, ternary: { decode: 0.75 } });
  expect(object.comparisons["8b"].niwaki.decode).toHaveLength(3);
});
