import { describe, expect, it } from "vitest";
import { type AdaptersResult, decodeMilliseconds, judge, longestInterval, swapMilliseconds } from "./result.js";
import { FULL } from "./workload.js";

const chunk = { request: 0, start: 0, end: 1, sample: true };
const step = (ended: number, rows: number, requests: number) => ({
  started: ended - 1,
  ended,
  rows,
  chunks: Array.from({ length: requests }, () => chunk),
});

describe("a decode step", () => {
  it("lasts from the end of one to the end of the next, prompts and stragglers left out", () => {
    const steps = [step(50, 8, 2), step(100, 2, 2), step(130, 2, 2), step(200, 2, 2), step(900, 1, 1)];
    expect(decodeMilliseconds(steps, 2)).toBe(50);
  });

  it("is not measured where there is only one, none, or others are between", () => {
    expect(() => decodeMilliseconds([step(1, 8, 2), step(2, 2, 2)], 2)).toThrow("fewer than two in a row");
    expect(() => decodeMilliseconds([], 2)).toThrow("fewer than two in a row");
    expect(() => decodeMilliseconds([step(1, 2, 2), step(2, 9, 2), step(3, 2, 2)], 2)).toThrow("of 3 steps");
  });
});

it("the longest interval is from end to end", () => {
  expect(longestInterval([{ ended: 100 }, { ended: 102 }, { ended: 200 }, { ended: 209 }])).toBe(98);
  expect(() => longestInterval([{ ended: 100 }])).toThrow("no interval between 1 steps");
});

describe("the result", () => {
  const swap = {
    registering: [200],
    inactive: [60, 80, 100],
    active: [40, 41, 90],
    steps: [38, 40, 50],
    beside: [41, 81, 90],
  };
  const result: AdaptersResult = {
    machine: "a machine",
    threads: 2,
    model: "a model",
    workload: FULL,
    f16: { without: [10, 20, 30], with: [11, 24, 33] },
    i8: { without: [10, 20, 30], with: [10, 21, 36] },
    together: { without: [100], with: [130] },
    swap,
  };

  it("counts what a swap adds to the same answer", () => {
    expect(swapMilliseconds(swap)).toBe(20);
  });

  it("compares the rounds' ratios and the swaps' medians with the targets", () => {
    expect(judge(result).map(({ value, target, met }) => [Number(value.toFixed(4)), target, met])).toEqual([
      [1.1, 1.12, true],
      [1.05, 1.07, true],
      [1.3, 1.3, true],
      [0.5, 1, true],
      [1.025, 1, false],
    ]);
    expect(judge(result)[0]).toMatchObject({ of: 24, to: 20 });
    expect(judge(result)[3]).toMatchObject({ of: 20, to: 40 });
  });
});
