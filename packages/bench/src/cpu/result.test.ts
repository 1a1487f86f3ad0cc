import { expect, it } from "vitest";
import { type CpuResult, packedToFile, ratioOf, shareOfBound, summary } from "./result.js";

const comparison = {
  model: "a model",
  decodedBytes: 2e9,
  fileBytes: 4e9,
  niwaki: [{ decode: 10, load: 1, weightBytes: 3e9 }, { batch: 64 }, { decode: 14, load: 3 }, { decode: 12, load: 2 }],
  nodeLlamaCpp: [{ decode: 3, load: 4 }, { batch: 8 }],
};
const result: CpuResult = {
  machine: "a machine",
  threads: 2,
  rounds: 3,
  promptTokens: 512,
  comparisons: { "8b": comparison },
  againstBound: {
    "8b": {
      model: "a model",
      decodedBytes: 2e9,
      samples: [
        { tokensPerSecond: 12, readBound: 40e9 },
        { tokensPerSecond: 8, readBound: 20e9 },
        { tokensPerSecond: 10, readBound: 50e9 },
      ],
    },
    ternary: { model: "another", decodedBytes: 1e9, samples: [{ tokensPerSecond: 20, readBound: 40e9 }] },
  },
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
  const kv8 = { ...comparison, niwaki: [{ longKv8: 60 }], nodeLlamaCpp: [{ long: 15 }] };
  expect(ratioOf(kv8, "longKv8")).toBe(4);
  expect(ratioOf(kv8, "long")).toBeUndefined();
});

it("sets the weights in memory beside the file", () => {
  expect(packedToFile(comparison)).toBe(0.75);
});

it("has no ratio for what was not measured", () => {
  expect(ratioOf(comparison, "long")).toBeUndefined();
});

it("compares what decoding reads with the bound of the same moment", () => {
  expect(shareOfBound(result.againstBound["8b"]!)).toBe(0.6);
});

it("gives ratios, medians and samples as one object of JSON", () => {
  const object = JSON.parse(JSON.stringify(summary(result)));
  expect(object.ratios).toEqual({ "8b": { decode: 4, batch: 8, load: 0.5 } });
  expect(object.medians).toEqual({
    "8b": { niwaki: { decode: 12, batch: 64, load: 2 }, nodeLlamaCpp: { decode: 3, batch: 8, load: 4 } },
  });
  expect(object.readBound).toBe(40e9);
  expect(object.decodeToBound).toEqual({ "8b": 0.6, ternary: 0.5 });
  expect(object.comparisons["8b"].niwaki).toHaveLength(4);
});
