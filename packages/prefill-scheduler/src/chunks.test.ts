import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { planChunks } from "./chunks.js";

const refusal = (value: unknown) =>
  expect.objectContaining({ name: "SchedulerError", code: "INVALID_ARGUMENT", value });

describe("planChunks", () => {
  it.each([
    [
      10,
      { chunkSize: 4 },
      [
        [0, 4],
        [4, 8],
        [8, 10],
      ],
    ],
    [
      8,
      { chunkSize: 4 },
      [
        [0, 4],
        [4, 8],
      ],
    ],
    [3, { chunkSize: 64 }, [[0, 3]]],
    [
      3,
      { chunkSize: 1 },
      [
        [0, 1],
        [1, 2],
        [2, 3],
      ],
    ],
    [
      10,
      { chunkSize: 4, computed: 5 },
      [
        [5, 9],
        [9, 10],
      ],
    ],
    [10, { chunkSize: 4, computed: 10 }, []],
    [0, { chunkSize: 4 }, []],
  ])("cuts %i tokens with %j", (promptTokens, options, expected) => {
    expect(planChunks(promptTokens, options).map(({ start, end }) => [start, end])).toEqual(expected);
  });

  it("covers what is not computed exactly once, with no chunk over the size", () => {
    fc.assert(
      fc.property(fc.nat(500), fc.integer({ min: 1, max: 600 }), fc.nat(500), (promptTokens, chunkSize, skip) => {
        const computed = Math.min(skip, promptTokens);
        const chunks = planChunks(promptTokens, { chunkSize, computed });
        let at = computed;
        for (const { start, end } of chunks) {
          expect(start).toBe(at);
          expect(end - start).toBe(Math.min(chunkSize, promptTokens - start));
          at = end;
        }
        expect(at).toBe(promptTokens);
      }),
      { seed: 3, numRuns: 500 },
    );
  });

  it("refuses sizes that make no sense", () => {
    expect(() => planChunks(10, { chunkSize: 0 })).toThrow(refusal(0));
    expect(() => planChunks(-1, { chunkSize: 4 })).toThrow(refusal(-1));
    expect(() => planChunks(1.5, { chunkSize: 4 })).toThrow(refusal(1.5));
    expect(() => planChunks(10, { chunkSize: 4, computed: 11 })).toThrow(refusal(11));
    expect(() => planChunks(10, { chunkSize: Number.NaN })).toThrow(refusal(Number.NaN));
  });
});
