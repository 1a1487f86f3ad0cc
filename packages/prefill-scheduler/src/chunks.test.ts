import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { planChunks, promptMemory } from "./chunks.js";

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
    [
      10,
      { chunkSize: 4, overlap: 1 },
      [
        [0, 4],
        [3, 7],
        [6, 10],
      ],
    ],
    [
      7,
      { chunkSize: 4, overlap: 3, computed: 1 },
      [
        [1, 5],
        [2, 6],
        [3, 7],
      ],
    ],
    [4, { chunkSize: 4, overlap: 3 }, [[0, 4]]],
    [0, { chunkSize: 4 }, []],
  ])("cuts %i tokens with %j", (promptTokens, options, expected) => {
    expect(planChunks(promptTokens, options).map(({ start, end }) => [start, end])).toEqual(expected);
  });

  it("covers what is not computed, with no chunk over the size and none without a new token", () => {
    const sizes = fc.record({
      promptTokens: fc.nat(500),
      chunkSize: fc.integer({ min: 1, max: 600 }),
      overlap: fc.nat(600),
      skip: fc.nat(500),
    });
    fc.assert(
      fc.property(sizes, (size) => {
        const { promptTokens, chunkSize } = size;
        const overlap = size.overlap % chunkSize;
        const computed = Math.min(size.skip, promptTokens);
        let done = computed;
        for (const { start, end, newTokens, progress } of planChunks(promptTokens, { chunkSize, overlap, computed })) {
          expect(start).toBe(done === computed ? computed : done - overlap);
          expect(end - start).toBe(Math.min(chunkSize, promptTokens - start));
          expect(newTokens).toBe(end - done);
          expect(newTokens).toBeGreaterThan(0);
          expect(progress).toBe(end / promptTokens);
          done = end;
        }
        expect(done).toBe(promptTokens);
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
    expect(() => planChunks(10, { chunkSize: 4, overlap: 4 })).toThrow(refusal(4));
  });
});

describe("promptMemory", () => {
  const shape = { layers: 28, heads: 16, kvHeads: 8, headDimension: 128 };

  it("counts scores of a chunk against the whole prompt, and K and V of every layer", () => {
    const memory = promptMemory(planChunks(4096, { chunkSize: 512 }), shape);
    expect(memory).toEqual({ keysAndValues: 2 * 28 * 8 * 128 * 2 * 4096, scores: 16 * 512 * 4096 * 4 });
    // Whole, it would be eight times that.
    expect(promptMemory([{ start: 0, end: 4096 }], shape).scores).toBe(8 * memory.scores);
  });

  it("takes the largest chunk, not the last", () => {
    const chunks = planChunks(1000, { chunkSize: 300 });
    expect(promptMemory(chunks, { ...shape, scoreBytes: 1 }).scores).toBe(16 * 300 * 900);
    expect(promptMemory([], shape)).toEqual({ keysAndValues: 0, scores: 0 });
  });

  it("refuses shapes and chunks that make no sense", () => {
    expect(() => promptMemory([], { ...shape, heads: 0 })).toThrow(refusal(0));
    expect(() => promptMemory([{ start: 3, end: 3 }], shape)).toThrow(refusal(3));
  });
});
