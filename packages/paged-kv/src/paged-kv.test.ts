import { describe, expect, it } from "vitest";
import { HostKvStorage } from "./host-storage.js";
import { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "PagedKvError", code, value });
const vector = (...floats: number[]) => Float32Array.from(floats);

function withStorage(blockCount: number, blockSize: number, layerCount = 2, width = 1): PagedKv {
  const storage = new HostKvStorage({ blockCount, blockSize, layerCount, width });
  return new PagedKv({ blockCount, blockSize, storage });
}

/** Writes `value` as K and its negative as V in both layers of the next token. */
function appendToken(sequence: Sequence, value: number): void {
  for (const layer of [0, 1]) sequence.write(layer, sequence.length, vector(value), vector(-value));
  sequence.advance([value]);
}

describe("Sequence", () => {
  it("tells length from capacity", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 16 });
    const sequence = kv.create();
    expect([sequence.length, sequence.capacity, sequence.blockTable.length]).toEqual([0, 0, 0]);
    expect(sequence.ensureCapacity(17)).toBe(true);
    expect([sequence.length, sequence.capacity, sequence.blockTable.length]).toEqual([0, 32, 2]);
    sequence.advance([1, 2, 3, 4, 5]);
    expect([sequence.length, sequence.capacity]).toEqual([5, 32]);
    expect([kv.tokenCount, kv.slotCount, kv.utilization]).toEqual([5, 128, 0.25]);
  });

  it("takes a block only when the last one is full", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4 });
    const sequence = kv.create();
    const held = Array.from({ length: 9 }, (_, i) => {
      sequence.ensureCapacity(i + 1);
      sequence.advance([1]);
      return sequence.blockTable.length;
    });
    expect(held).toEqual([1, 1, 1, 1, 2, 2, 2, 2, 3]);
    expect([1, 4, 5, 8, 9].map((tokens) => kv.blocksFor(tokens))).toEqual([1, 1, 2, 2, 3]);
  });

  it("interleaves the blocks of two sequences and finds every slot", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 4 });
    const a = kv.create();
    const b = kv.create();
    a.ensureCapacity(4);
    b.ensureCapacity(4);
    a.ensureCapacity(8);
    b.ensureCapacity(5);
    expect([[...a.blockTable], [...b.blockTable]]).toEqual([
      [0, 2],
      [1, 3],
    ]);
    expect([0, 3, 4, 7].map((position) => a.slot(position))).toEqual([0, 3, 8, 11]);
    expect([0, 3, 4, 7].map((position) => b.slot(position))).toEqual([4, 7, 12, 15]);
    expect(() => a.slot(8)).toThrow(error("BEYOND_CAPACITY", 8));
    expect(() => a.slot(-1)).toThrow(error("INVALID_ARGUMENT", -1));
    expect(() => a.slot(0.5)).toThrow(error("INVALID_ARGUMENT", 0.5));
  });

  it("grows by all the blocks or by none", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 4 });
    const a = kv.create();
    const b = kv.create();
    expect(a.ensureCapacity(9)).toBe(true);
    const table = b.blockTable;
    expect(b.ensureCapacity(5)).toBe(false);
    expect([b.capacity, kv.freeBlocks, b.blockTable === table]).toEqual([0, 1, true]);
    expect(b.ensureCapacity(4)).toBe(true);
    expect(a.ensureCapacity(12)).toBe(true);
    expect(a.ensureCapacity(13)).toBe(false);
    expect([...a.blockTable]).toEqual([0, 1, 2]);
    expect(a.ensureCapacity(1e15)).toBe(false);
  });

  it("hands out its table as a view that stands while the table stays", () => {
    const kv = new PagedKv({ blockCount: 1024, blockSize: 1 });
    const sequence = kv.create();
    const buffers = new Set<ArrayBufferLike>();
    for (let tokens = 1; tokens <= 1024; tokens++) {
      sequence.ensureCapacity(tokens);
      const table = sequence.blockTable;
      expect(sequence.blockTable).toBe(table);
      expect(table.length).toBe(tokens);
      buffers.add(table.buffer);
    }
    // 4, 8, 16 ... 1024: geometric growth, nothing else is ever allocated.
    expect(buffers.size).toBe(9);
    expect(sequence.blockTable).toEqual(Int32Array.from({ length: 1024 }, (_, id) => id));
  });

  it("leaves the view that a running step holds alone when the table moves", () => {
    const kv = new PagedKv({ blockCount: 16, blockSize: 1 });
    const sequence = kv.create();
    sequence.ensureCapacity(3);
    const held = sequence.blockTable;
    sequence.ensureCapacity(16);
    expect([...held]).toEqual([0, 1, 2]);
  });

  it("shows the new table when it moved and came back to the same size", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 1 });
    const sequence = kv.create();
    sequence.ensureCapacity(4);
    expect([...sequence.blockTable]).toEqual([0, 1, 2, 3]);
    sequence.ensureCapacity(5);
    sequence.truncate(0);
    sequence.ensureCapacity(4);
    expect([...sequence.blockTable]).toEqual([4, 3, 2, 1]);
  });

  it("gives back on truncate what it no longer needs, reserved blocks too, the tail first", () => {
    const kv = new PagedKv({ blockCount: 6, blockSize: 4 });
    const sequence = kv.create();
    sequence.ensureCapacity(24);
    sequence.advance([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    sequence.truncate(10);
    expect([sequence.length, sequence.capacity, kv.freeBlocks]).toEqual([10, 12, 3]);
    sequence.truncate(4);
    expect([sequence.length, sequence.capacity, kv.freeBlocks]).toEqual([4, 4, 5]);
    expect(() => sequence.truncate(5)).toThrow(error("BEYOND_LENGTH", 5));
    sequence.truncate(0);
    expect([sequence.length, sequence.capacity, kv.freeBlocks]).toEqual([0, 0, 6]);
    expect(sequence.ensureCapacity(24)).toBe(true);
    // Blocks 0 and 1 were full, so they are cached and reused last; of the others, those freed last come first.
    expect([...sequence.blockTable]).toEqual([2, 5, 4, 3, 1, 0]);
  });

  it("refuses to advance past its capacity", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 4 });
    const sequence = kv.create();
    sequence.ensureCapacity(5);
    sequence.advance([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(() => sequence.advance([1])).toThrow(error("BEYOND_CAPACITY", 8));
    expect(() => sequence.advance([0.5])).toThrow(error("BEYOND_CAPACITY", 8));
    expect(sequence.length).toBe(8);
  });

  it("is gone after drop", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 4 });
    const sequence = kv.create();
    sequence.ensureCapacity(16);
    sequence.advance([1, 2, 3]);
    expect([kv.usedBlocks, kv.sequenceCount, kv.tokenCount]).toEqual([4, 1, 3]);
    sequence.drop();
    expect([kv.usedBlocks, kv.sequenceCount, kv.tokenCount]).toEqual([0, 0, 0]);
    for (const use of [
      () => sequence.drop(),
      () => sequence.ensureCapacity(1),
      () => sequence.advance([]),
      () => sequence.truncate(0),
      () => sequence.slot(0),
    ]) {
      expect(use).toThrow(error("SEQUENCE_DROPPED"));
    }
    kv.checkIntegrity();
  });
});

describe("blockMap", () => {
  it("tells blocks that are free, cached, held and shared", () => {
    const kv = new PagedKv({ blockCount: 5, blockSize: 2 });
    const prompt = [1, 2, 3, 4, 5];
    const [a, b] = [kv.create(), kv.create()];
    a.ensureCapacity(5);
    a.advance(prompt);
    expect([...kv.blockMap()]).toEqual([2, 2, 2, 0, 0]);
    b.match(prompt);
    b.ensureCapacity(5);
    expect([...kv.blockMap()]).toEqual([3, 3, 2, 2, 0]);
    for (const sequence of [a, b]) sequence.drop();
    expect([...kv.blockMap()]).toEqual([1, 1, 0, 0, 0]);
  });
});

describe("PagedKv with a storage", () => {
  it("writes and reads K and V of one token of a layer", () => {
    const kv = withStorage(4, 2, 2, 3);
    const sequence = kv.create();
    sequence.ensureCapacity(3);
    for (let position = 0; position < 3; position++) {
      for (const layer of [0, 1]) {
        const n = 100 * layer + position;
        sequence.write(layer, position, vector(n, n + 0.25, n + 0.5), vector(-n, 1, 2));
      }
    }
    sequence.advance([1, 2, 3]);
    const key = new Float32Array(3);
    const value = new Float32Array(3);
    sequence.read(1, 2, key, value);
    expect([...key, ...value]).toEqual([102, 102.25, 102.5, -102, 1, 2]);
    sequence.read(0, 0, key, value);
    expect([...key, ...value]).toEqual([0, 0.25, 0.5, -0, 1, 2]);
  });

  it("refuses reads of slots that were never written, also in a block that another sequence wrote", () => {
    const kv = withStorage(2, 2);
    const first = kv.create();
    first.ensureCapacity(4);
    for (const n of [1, 2, 3]) appendToken(first, n);
    const out = vector(0);
    expect(() => first.read(0, 3, out, out)).toThrow(error("UNWRITTEN_SLOT", 3));
    expect(() => first.read(0, 4, out, out)).toThrow(error("BEYOND_CAPACITY", 4));
    first.drop();
    const second = kv.create();
    second.ensureCapacity(4);
    for (const position of [0, 1, 2, 3]) {
      expect(() => second.read(0, position, out, out)).toThrow(error("UNWRITTEN_SLOT", position));
    }
  });

  it("reads a layer of the token that is being written, before it counts", () => {
    const kv = withStorage(1, 4);
    const sequence = kv.create();
    sequence.ensureCapacity(1);
    sequence.write(0, 0, vector(7), vector(8));
    const key = vector(0);
    const value = vector(0);
    sequence.read(0, 0, key, value);
    expect([key[0], value[0], sequence.length]).toEqual([7, 8, 0]);
    expect(() => sequence.read(1, 0, key, value)).toThrow(error("UNWRITTEN_SLOT", 0));
  });

  it("does not count a token that misses a layer", () => {
    const kv = withStorage(1, 4);
    const sequence = kv.create();
    sequence.ensureCapacity(2);
    appendToken(sequence, 1);
    sequence.write(0, 1, vector(1), vector(1));
    expect(() => sequence.advance([1])).toThrow(error("UNWRITTEN_SLOT", 1));
    expect(sequence.length).toBe(1);
  });

  it("forgets what truncate cut off inside a block", () => {
    const kv = withStorage(2, 4);
    const sequence = kv.create();
    sequence.ensureCapacity(8);
    for (const n of [1, 2, 3]) appendToken(sequence, n);
    sequence.truncate(1);
    const key = vector(0);
    const value = vector(0);
    sequence.read(1, 0, key, value);
    expect([key[0], value[0]]).toEqual([1, -1]);
    expect(() => sequence.read(1, 1, key, value)).toThrow(error("UNWRITTEN_SLOT", 1));
    expect(() => sequence.read(1, 2, key, value)).toThrow(error("UNWRITTEN_SLOT", 2));
  });

  it("needs one to read and write, of its own size", () => {
    const sequence = new PagedKv({ blockCount: 2, blockSize: 4 }).create();
    sequence.ensureCapacity(1);
    expect(() => sequence.write(0, 0, vector(1), vector(1))).toThrow(error("NO_STORAGE"));
    expect(() => sequence.read(0, 0, vector(1), vector(1))).toThrow(error("NO_STORAGE"));
    const storage = new HostKvStorage({ blockCount: 9, blockSize: 4, layerCount: 1, width: 1 });
    expect(() => new PagedKv({ blockCount: 2, blockSize: 4, storage })).toThrow(error("INVALID_ARGUMENT", 9));
  });
});

describe("checkIntegrity", () => {
  it("finds a block that stands in more or fewer tables than it has references", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 1 });
    const [a, b] = [kv.create(), kv.create()];
    a.ensureCapacity(1);
    b.ensureCapacity(1);
    kv.checkIntegrity();
    b.blockTable[0] = 0;
    expect(() => kv.checkIntegrity()).toThrow(error("CORRUPT", 0));
    b.blockTable[0] = 3;
    expect(() => kv.checkIntegrity()).toThrow(error("CORRUPT", 1));
  });
});
