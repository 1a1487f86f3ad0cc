import { describe, expect, it } from "vitest";
import { HostKvStorage } from "./host-storage.js";
import { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "PagedKvError", code, value });

function withStorage(blockCount: number, blockSize = 4): PagedKv {
  const storage = new HostKvStorage({ blockCount, blockSize, layerCount: 1, width: 1 });
  return new PagedKv({ blockCount, blockSize, storage });
}

/** Computes tokens as a model does: K is the token, V its negative. */
function compute(sequence: Sequence, ...tokens: number[]): void {
  expect(sequence.ensureCapacity(sequence.length + tokens.length)).toBe(true);
  for (const [i, token] of tokens.entries()) {
    sequence.write(0, sequence.length + i, Float32Array.of(token), Float32Array.of(-token));
  }
  sequence.advance(tokens);
}

function keys(sequence: Sequence): number[] {
  const [key, value] = [new Float32Array(1), new Float32Array(1)];
  return Array.from({ length: sequence.length }, (_, position) => {
    sequence.read(0, position, key, value);
    return key[0]!;
  });
}

describe("fork", () => {
  it("shares all blocks, and copies the one that is not full when the second goes on", () => {
    const kv = withStorage(8);
    const first = kv.create();
    compute(first, 1, 2, 3, 4, 5, 6);
    const second = first.fork();
    expect([[...second.blockTable], second.length, kv.usedBlocks]).toEqual([[0, 1], 6, 2]);
    compute(first, 7);
    expect(kv.usedBlocks).toBe(2);
    compute(second, 8);
    expect([[...first.blockTable], [...second.blockTable]]).toEqual([
      [0, 1],
      [0, 2],
    ]);
    expect([keys(first), keys(second)]).toEqual([
      [1, 2, 3, 4, 5, 6, 7],
      [1, 2, 3, 4, 5, 6, 8],
    ]);
    expect([[...second.tokens()], kv.stats().copiedBlocks]).toEqual([[1, 2, 3, 4, 5, 6, 8], 1]);
    kv.checkIntegrity();
    first.drop();
    second.drop();
    expect(kv.freeBlocks).toBe(8);
  });

  it("copies nothing on a block boundary, nor when the other is gone", () => {
    const kv = withStorage(8);
    const first = kv.create();
    compute(first, 1, 2, 3, 4);
    const second = first.fork();
    compute(first, 5);
    compute(second, 6, 7);
    const third = second.fork();
    second.drop();
    compute(third, 8);
    expect([keys(first), keys(third), kv.stats().copiedBlocks]).toEqual([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7, 8], 0]);
    kv.checkIntegrity();
  });

  it("leaves room beyond the tokens with the first, who may go on in it", () => {
    const kv = withStorage(8);
    const first = kv.create();
    compute(first, 1, 2, 3, 4, 5);
    first.ensureCapacity(12);
    const second = first.fork();
    expect([first.capacity, second.capacity]).toEqual([12, 8]);
    compute(first, 6, 7, 8);
    // Block 1 is cached now, with tokens that the second never had.
    compute(second, 9);
    expect([keys(first), keys(second)]).toEqual([
      [1, 2, 3, 4, 5, 6, 7, 8],
      [1, 2, 3, 4, 5, 9],
    ]);
    expect(kv.create().match([1, 2, 3, 4, 5, 6, 7, 8, 9])).toBe(8);
    kv.checkIntegrity();
  });

  it("serves several samples of one prompt with one copy for each but the first", () => {
    const kv = withStorage(16);
    const prompt = kv.create();
    compute(prompt, 1, 2, 3, 4, 5);
    const samples = [prompt, ...Array.from({ length: 4 }, () => prompt.fork())];
    for (const [i, sample] of samples.entries()) compute(sample, 10 + i, 20 + i, 30 + i, 40 + i);
    expect(samples.map(keys)).toEqual(samples.map((_, i) => [1, 2, 3, 4, 5, 10 + i, 20 + i, 30 + i, 40 + i]));
    expect([kv.usedBlocks, kv.stats().copiedBlocks, kv.stats().tokens]).toEqual([11, 4, 45]);
    kv.checkIntegrity();
  });

  it("refuses without a change when there is no block for the copy", () => {
    const kv = withStorage(2);
    const first = kv.create();
    compute(first, 1, 2, 3, 4, 5);
    const second = first.fork();
    expect([second.ensureCapacity(6), second.capacity, kv.stats().copiedBlocks]).toEqual([false, 8, 0]);
    first.drop();
    compute(second, 6);
    expect(keys(second)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it("must not be written before it has asked for room", () => {
    const kv = withStorage(4);
    const first = kv.create();
    compute(first, 1, 2, 3);
    const second = first.fork();
    const vector = Float32Array.of(9);
    expect(() => second.write(0, 3, vector, vector)).toThrow(error("NOT_WRITABLE", 3));
    expect(() => second.advance([9])).toThrow(error("NOT_WRITABLE", 3));
    // What the first writes there is not the second's to read.
    first.write(0, 3, vector, vector);
    expect(() => second.read(0, 3, vector, vector)).toThrow(error("UNWRITTEN_SLOT", 3));
    second.ensureCapacity(4);
    expect(() => second.read(0, 3, vector, vector)).toThrow(error("UNWRITTEN_SLOT", 3));
    expect(() => second.write(0, 2, vector, vector)).toThrow(error("NOT_WRITABLE", 2));
  });

  it("needs a storage that can copy, or the other to be gone", () => {
    const kv = new PagedKv({ blockCount: 4, blockSize: 4 });
    const first = kv.create();
    first.ensureCapacity(3);
    first.advance([1, 2, 3]);
    const second = first.fork();
    expect(() => second.ensureCapacity(4)).toThrow(error("NO_STORAGE"));
    expect([kv.usedBlocks, kv.freeBlocks]).toEqual([1, 3]);
    kv.checkIntegrity();
    first.drop();
    expect(second.ensureCapacity(4)).toBe(true);
  });

  it("changes nothing when the storage fails to copy", () => {
    const storage = new HostKvStorage({ blockCount: 4, blockSize: 4, layerCount: 1, width: 1 });
    const kv = new PagedKv({ blockCount: 4, blockSize: 4, storage });
    const first = kv.create();
    compute(first, 1, 2, 3);
    const second = first.fork();
    const copyBlock = storage.copyBlock.bind(storage);
    storage.copyBlock = () => {
      throw new Error("device lost");
    };
    expect(() => second.ensureCapacity(4)).toThrow("device lost");
    expect([[...second.blockTable], kv.freeBlocks, kv.stats().copiedBlocks]).toEqual([[0], 3, 0]);
    kv.checkIntegrity();
    storage.copyBlock = copyBlock;
    compute(second, 4);
    expect(keys(second)).toEqual([1, 2, 3, 4]);
  });

  it("leaves the table that a running step reads alone", () => {
    const kv = withStorage(4);
    const first = kv.create();
    compute(first, 1, 2, 3);
    const second = first.fork();
    const running = second.blockTable;
    compute(second, 4);
    expect([[...running], [...second.blockTable]]).toEqual([[0], [1]]);
  });
});

describe("truncate", () => {
  it("keeps full blocks findable, and cuts into a shared one without harm to the others", () => {
    const kv = withStorage(8);
    const [first, second] = [kv.create(), kv.create()];
    const prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    compute(first, ...prompt);
    expect(second.match(prompt)).toBe(8);
    second.truncate(6);
    compute(second, 70, 80);
    expect([keys(first), keys(second)]).toEqual([prompt, [1, 2, 3, 4, 5, 6, 70, 80]]);
    expect([first.blockTable[1], second.blockTable[1]]).toEqual([1, 3]);
    expect(kv.create().match([...prompt, 10])).toBe(8);
    expect(kv.create().match([1, 2, 3, 4, 5, 6, 70, 80, 9])).toBe(8);
    kv.checkIntegrity();
  });

  it("leaves a cached block findable, and what was cut off unreadable, until the sequence goes on", () => {
    const kv = withStorage(8);
    const sequence = kv.create();
    compute(sequence, 1, 2, 3, 4, 5, 6, 7, 8);
    sequence.truncate(6);
    expect(kv.create().match([1, 2, 3, 4, 5, 6, 7, 8, 9])).toBe(8);
    const vector = Float32Array.of(0);
    // The old tokens are still there, but they are no longer this sequence's.
    expect(() => sequence.read(0, 6, vector, vector)).toThrow(error("UNWRITTEN_SLOT", 6));
  });

  it("reopens a cached block that nobody else holds", () => {
    const kv = withStorage(8);
    const sequence = kv.create();
    compute(sequence, 1, 2, 3, 4, 5, 6, 7, 8);
    sequence.truncate(6);
    expect(kv.stats().cachedBlocks).toBe(2);
    compute(sequence, 70);
    expect([keys(sequence), [...sequence.blockTable], kv.stats().cachedBlocks]).toEqual([
      [1, 2, 3, 4, 5, 6, 70],
      [0, 1],
      1,
    ]);
    expect(kv.create().match([1, 2, 3, 4, 5, 6, 7, 8, 9])).toBe(4);
    expect(() => sequence.read(0, 7, new Float32Array(1), new Float32Array(1))).toThrow(error("UNWRITTEN_SLOT", 7));
    kv.checkIntegrity();
  });
});

describe("advance", () => {
  it("refuses what is not a token id, before any change", () => {
    const kv = new PagedKv({ blockCount: 2, blockSize: 4 });
    const sequence = kv.create();
    sequence.ensureCapacity(8);
    for (const token of [0.5, Number.NaN, 2 ** 31]) {
      expect(() => sequence.advance([1, 2, 3, 4, token])).toThrow(error("INVALID_ARGUMENT", token));
    }
    expect([sequence.length, kv.stats().cachedBlocks]).toEqual([0, 0]);
    sequence.advance([]);
    sequence.advance(Int32Array.of(1, 2, 3, -(2 ** 31), 5));
    expect([...sequence.tokens(), kv.stats().cachedBlocks]).toEqual([1, 2, 3, -(2 ** 31), 5, 1]);
  });
});
