import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { BlockPool } from "./block-pool.js";
import { PagedKvError } from "./errors.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "PagedKvError", code, value });

describe("BlockPool", () => {
  it("hands out the lowest ids first and counts them", () => {
    const pool = new BlockPool({ blockCount: 5, blockSize: 16 });
    expect(pool.allocate(2)).toEqual(Int32Array.of(0, 1));
    expect(pool.allocate(0)).toEqual(new Int32Array(0));
    expect(pool.allocate(1)).toEqual(Int32Array.of(2));
    expect([pool.freeBlocks, pool.usedBlocks, pool.blockCount, pool.blockSize]).toEqual([2, 3, 5, 16]);
    expect([0, 1, 2, 3, 4, 5, -1].map((block) => pool.references(block))).toEqual([1, 1, 1, 0, 0, 0, 0]);
  });

  it("gives all blocks or none", () => {
    const pool = new BlockPool({ blockCount: 4, blockSize: 1 });
    pool.allocate(2);
    const target = new Int32Array(4).fill(-1);
    expect(pool.allocate(3)).toBeNull();
    expect(pool.allocateInto(target, 0, 3)).toBe(false);
    expect([...target, pool.freeBlocks]).toEqual([-1, -1, -1, -1, 2]);
    expect(pool.allocateInto(target, 1, 2)).toBe(true);
    expect([...target, pool.freeBlocks]).toEqual([-1, 2, 3, -1, 0]);
    expect(pool.allocate(1)).toBeNull();
  });

  it("reuses what was freed last first, and of a table the tail", () => {
    const pool = new BlockPool({ blockCount: 6, blockSize: 1 });
    const table = pool.allocate(4)!;
    pool.free(table);
    // 4 and 5 were free all along; what was freed without being cached is reused at once, the tail first.
    expect(pool.allocate(6)).toEqual(Int32Array.of(3, 2, 1, 0, 4, 5));
  });

  it("frees a range of a table", () => {
    const pool = new BlockPool({ blockCount: 4, blockSize: 1 });
    const table = pool.allocate(4)!;
    pool.free(table, 1, 3);
    expect([0, 1, 2, 3].map((block) => pool.references(block))).toEqual([1, 0, 0, 1]);
    expect(pool.allocate(2)).toEqual(Int32Array.of(2, 1));
  });

  it("frees a block when its last holder gives it back", () => {
    const pool = new BlockPool({ blockCount: 3, blockSize: 1 });
    const table = pool.allocate(2)!;
    pool.share(1);
    pool.free(table);
    expect([pool.references(0), pool.references(1), pool.freeBlocks]).toEqual([0, 1, 2]);
    pool.free([1]);
    expect([pool.references(1), pool.freeBlocks]).toEqual([0, 3]);
    expect(() => pool.free([1])).toThrow(error("DOUBLE_FREE", 1));
    expect(() => pool.share(1)).toThrow(error("INVALID_ARGUMENT", 1));
    expect(() => pool.share(3)).toThrow(error("UNKNOWN_BLOCK", 3));
  });

  it("queues what is not cached at the front and what is cached at the back, of each call the tail first", () => {
    const evicted: number[] = [];
    const pool = new BlockPool({ blockCount: 7, blockSize: 1, onEvict: (block) => evicted.push(block) });
    const table = pool.allocate(6)!;
    for (const block of [0, 1, 3]) pool.setCached(block, true);
    pool.free(table, 3, 6);
    pool.checkIntegrity();
    pool.free(table, 0, 3);
    pool.checkIntegrity();
    expect(pool.allocate(7)).toEqual(Int32Array.of(2, 5, 4, 6, 3, 1, 0));
    expect(evicted).toEqual([3, 1, 0]);
    expect([0, 1, 3].map((block) => pool.isCached(block))).toEqual([false, false, false]);
  });

  it("takes a cached block from the front, the middle and the back of the queue", () => {
    const pool = new BlockPool({ blockCount: 4, blockSize: 1 });
    const table = pool.allocate(4)!;
    for (const block of table) pool.setCached(block, true);
    pool.free(table);
    for (const block of [2, 0, 3]) {
      pool.share(block);
      pool.checkIntegrity();
    }
    expect([pool.freeBlocks, pool.isCached(2)]).toEqual([1, true]);
    pool.share(1);
    expect([pool.freeBlocks, pool.allocate(1)]).toEqual([0, null]);
    pool.checkIntegrity();
    pool.free([1]);
    pool.free([2]);
    expect(pool.allocate(2)).toEqual(Int32Array.of(1, 2));
    pool.checkIntegrity();
  });

  it("marks blocks only while they are held", () => {
    const pool = new BlockPool({ blockCount: 2, blockSize: 1 });
    expect(() => pool.setCached(0, true)).toThrow(error("INVALID_ARGUMENT", 0));
    expect(() => pool.setCached(2, true)).toThrow(error("INVALID_ARGUMENT", 2));
  });

  it.each([
    ["a free block", [0, 3], "DOUBLE_FREE", 3],
    ["a block named twice", [0, 1, 0], "DOUBLE_FREE", 0],
    ["an id past the end", [0, 4], "UNKNOWN_BLOCK", 4],
    ["a negative id", [0, -1], "UNKNOWN_BLOCK", -1],
    ["a fraction", [0, 0.5], "UNKNOWN_BLOCK", 0.5],
    ["NaN", [0, Number.NaN], "UNKNOWN_BLOCK", Number.NaN],
  ])("refuses to free %s, before any change", (_, blocks, code, value) => {
    const pool = new BlockPool({ blockCount: 4, blockSize: 1 });
    pool.allocate(2);
    expect(() => pool.free(blocks)).toThrow(error(code, value));
    expect([pool.usedBlocks, pool.references(0), pool.references(1)]).toEqual([2, 1, 1]);
    pool.checkIntegrity();
    pool.free([0, 1]);
    expect(() => pool.free([1])).toThrow(error("DOUBLE_FREE", 1));
    pool.checkIntegrity();
  });

  it.each([
    [{ blockCount: 0, blockSize: 1 }, 0],
    [{ blockCount: 1.5, blockSize: 1 }, 1.5],
    [{ blockCount: 1, blockSize: -1 }, -1],
    [{ blockCount: 1, blockSize: Number.NaN }, Number.NaN],
    [{ blockCount: 2 ** 27, blockSize: 16 }, 2 ** 27],
  ])("refuses the sizes %j", (options, value) => {
    expect(() => new BlockPool(options)).toThrow(error("INVALID_ARGUMENT", value));
  });

  it("refuses counts and ranges that make no sense", () => {
    const pool = new BlockPool({ blockCount: 4, blockSize: 1 });
    expect(() => pool.allocate(-1)).toThrow(error("INVALID_ARGUMENT", -1));
    expect(() => pool.allocateInto(new Int32Array(2), 1, 2)).toThrow(error("INVALID_ARGUMENT", 2));
    expect(() => pool.free([0], 0, 2)).toThrow(error("INVALID_ARGUMENT", 2));
    expect(() => pool.free([0], 1, 0)).toThrow(error("INVALID_ARGUMENT", 1));
    expect(pool.freeBlocks).toBe(4);
  });

  it("agrees with a plain list over 100,000 random operations", { timeout: 60_000 }, () => {
    const blockCount = 13;
    const operation = fc.tuple(fc.constantFrom("allocate", "free", "refused"), fc.nat(15), fc.nat(1000));
    let operations = 0;
    fc.assert(
      fc.property(fc.array(operation, { minLength: 800, maxLength: 1200, size: "max" }), (script) => {
        const pool = new BlockPool({ blockCount, blockSize: 2 });
        const free = Array.from({ length: blockCount }, (_, id) => id);
        const tables: number[][] = [];
        for (const [kind, count, pick] of script) {
          operations++;
          const table = tables[pick % tables.length];
          if (kind === "allocate") {
            const got = pool.allocate(count);
            if (count > free.length) expect(got).toBeNull();
            else {
              tables.push(free.splice(0, count));
              expect([...got!]).toEqual(tables.at(-1));
            }
          } else if (kind === "free" && table) {
            pool.free(table);
            free.unshift(...table.toReversed());
            tables.splice(tables.indexOf(table), 1);
          } else if (kind === "refused") {
            const bad = [...(table ?? []), free[0] ?? blockCount];
            expect(() => pool.free(bad)).toThrow(PagedKvError);
          }
          if (pool.freeBlocks !== free.length || pool.freeBlocks + pool.usedBlocks !== blockCount) {
            expect([pool.freeBlocks, pool.usedBlocks]).toEqual([free.length, blockCount - free.length]);
          }
          pool.checkIntegrity();
        }
        for (const table of tables) pool.free(table);
        expect(pool.freeBlocks).toBe(blockCount);
        pool.checkIntegrity();
      }),
      { seed: 1, numRuns: 100, interruptAfterTimeLimit: 20_000 },
    );
    expect(operations).toBeGreaterThan(80_000);
  });
});
