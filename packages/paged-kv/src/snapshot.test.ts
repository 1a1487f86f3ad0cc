import { createReadStream } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { HostKvStorage } from "./host-storage.js";
import { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "PagedKvError", code, value });
const FINGERPRINT = "a model, 2 layers, f32";
const PROMPT = Array.from({ length: 14 }, (_, i) => 100 + i);

function create(blockCount: number, { blockSize = 4, width = 3 } = {}): PagedKv {
  const storage = new HostKvStorage({ blockCount, blockSize, layerCount: 2, width });
  return new PagedKv({ blockCount, blockSize, storage });
}

/** K and V of a position depend on the token, the layer and the place in the vector. */
const vectors = (token: number, layer: number) => [token, layer, 0.5].map((x) => Float32Array.of(x, x + 0.25, -x));

function compute(kv: PagedKv, extraKeys = ""): Sequence {
  const sequence = kv.create({ extraKeys });
  sequence.match(PROMPT);
  expect(sequence.ensureCapacity(PROMPT.length)).toBe(true);
  for (let position = sequence.length; position < PROMPT.length; position++) {
    for (const layer of [0, 1]) {
      const [key, value] = vectors(PROMPT[position]!, layer);
      sequence.write(layer, position, key!, value!);
    }
  }
  sequence.advance(PROMPT.slice(sequence.length));
  return sequence;
}

function expectContent(sequence: Sequence): void {
  const [key, value] = [new Float32Array(3), new Float32Array(3)];
  for (let position = 0; position < sequence.length; position++) {
    for (const layer of [0, 1]) {
      sequence.read(layer, position, key, value);
      expect([key, value]).toEqual(vectors(PROMPT[position]!, layer).slice(0, 2));
    }
  }
}

async function bytesOf(kv: PagedKv, sequence: Sequence): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for await (const piece of kv.snapshot(sequence, FINGERPRINT)) pieces.push(piece);
  return new Uint8Array(Buffer.concat(pieces));
}

describe("snapshot", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "niwaki-paged-kv-"));
  });
  afterAll(() => rm(folder, { recursive: true }));

  it("goes to a file and from there into another cache, with the same K and V", async () => {
    const path = join(folder, "prefix.kv");
    const from = create(8);
    const sequence = compute(from, "adapter");
    await writeFile(path, from.snapshot(sequence, FINGERPRINT));

    const to = create(5);
    const restored = await to.restore(createReadStream(path, { highWaterMark: 50 }), FINGERPRINT);
    expect(restored).toEqual(Int32Array.from(PROMPT.slice(0, 12)));
    const { usedBlocks, cachedBlocks, queriedTokens, sequences } = to.stats();
    expect([usedBlocks, cachedBlocks, queriedTokens, sequences]).toEqual([0, 3, 0, 0]);
    to.checkIntegrity();

    expect(to.create().match(PROMPT)).toBe(0);
    const later = to.create({ extraKeys: "adapter" });
    expect(later.match(PROMPT)).toBe(12);
    expectContent(later);
    expect(await readFile(path)).toEqual(Buffer.from(await bytesOf(to, later)));
  });

  it("is laid out as documented", async () => {
    const kv = create(8);
    const bytes = await bytesOf(kv, compute(kv, "é"));
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    expect(Buffer.from(bytes.subarray(0, 4)).toString()).toBe("nwkv");
    const fields = [4, 8, 12, 16, 20, 24].map((offset) => view.getUint32(offset, true));
    expect(fields).toEqual([1, 4, 192, 3, 22, 2]);
    expect(Buffer.from(bytes.subarray(28, 52)).toString()).toBe(`${FINGERPRINT}é`);
    expect(Array.from({ length: 12 }, (_, i) => view.getInt32(52 + 4 * i, true))).toEqual(PROMPT.slice(0, 12));
    expect(bytes).toHaveLength(52 + 48 + 4 + 3 * (192 + 4));
    // The first K of the second block stands after the header, the first block and its checksum.
    expect(view.getFloat32(104 + 196, true)).toBe(PROMPT[4]);
  });

  it("holds its blocks while it is read, and gives them back also when it is not read to its end", async () => {
    const kv = create(4);
    const sequence = compute(kv);
    const snapshot = kv.snapshot(sequence, FINGERPRINT);
    const first = await snapshot.next();
    expect(first.done).toBe(false);
    sequence.drop();
    expect([kv.usedBlocks, kv.create().ensureCapacity(8)]).toEqual([3, false]);
    await snapshot.return();
    expect(kv.freeBlocks).toBe(4);
    await expect(kv.snapshot(sequence, FINGERPRINT).next()).rejects.toThrow(error("SEQUENCE_DROPPED"));
    kv.checkIntegrity();
  });

  it("of a sequence without a full block is empty, and can be restored", async () => {
    const kv = create(4);
    const bytes = await bytesOf(kv, kv.create());
    expect(await kv.restore([bytes], FINGERPRINT)).toEqual(new Int32Array(0));
  });

  it("writes only the blocks that are not cached", async () => {
    const from = create(8);
    const bytes = await bytesOf(from, compute(from));
    const storage = new HostKvStorage({ blockCount: 8, blockSize: 4, layerCount: 2, width: 3 });
    const kv = new PagedKv({ blockCount: 8, blockSize: 4, storage });
    compute(kv).drop();
    // Takes all that is not cached, and the last cached block.
    const other = kv.create();
    other.ensureCapacity(24);
    other.drop();
    expect(kv.stats().cachedBlocks).toBe(2);
    const written: number[] = [];
    const writeBlock = storage.writeBlock.bind(storage);
    storage.writeBlock = (block, content) => {
      written.push(block);
      writeBlock(block, content);
    };
    expect(await kv.restore([bytes], FINGERPRINT)).toHaveLength(12);
    expect([written.length, kv.stats().cachedBlocks]).toEqual([1, 3]);
    const later = kv.create();
    later.match(PROMPT);
    expect([later.length, later.blockTable[2]]).toEqual([12, written[0]]);
    expectContent(later);
    kv.checkIntegrity();
  });

  it("says when there is no room, and what it needs a storage for", async () => {
    const from = create(8);
    const sequence = compute(from);
    const bytes = await bytesOf(from, sequence);
    const kv = create(2);
    expect(await kv.restore([bytes], FINGERPRINT)).toBeNull();
    expect(kv.freeBlocks).toBe(2);
    const books = new PagedKv({ blockCount: 8, blockSize: 4 });
    await expect(books.restore([bytes], FINGERPRINT)).rejects.toThrow(error("NO_STORAGE"));
    expect(() => books.snapshot(books.create(), FINGERPRINT)).toThrow(error("NO_STORAGE"));
    expect(() => from.snapshot(sequence, "x".repeat(65_536))).toThrow(error("INVALID_ARGUMENT", 65_536));
    sequence.drop();
    expect(from.freeBlocks).toBe(8);
  });

  it("refuses a snapshot of another model, block size, storage or version", async () => {
    const from = create(8);
    const bytes = await bytesOf(from, compute(from));
    await expect(create(8).restore([bytes], "b")).rejects.toThrow(error("SNAPSHOT_MISMATCH", FINGERPRINT));
    await expect(create(8, { blockSize: 2 }).restore([bytes], FINGERPRINT)).rejects.toThrow(
      error("SNAPSHOT_MISMATCH", 4),
    );
    await expect(create(8, { width: 4 }).restore([bytes], FINGERPRINT)).rejects.toThrow(
      error("SNAPSHOT_MISMATCH", 192),
    );
    const newer = bytes.slice();
    newer[4] = 2;
    await expect(create(8).restore([newer], FINGERPRINT)).rejects.toThrow(error("NOT_A_SNAPSHOT", 2));
    await expect(create(8).restore([Buffer.alloc(1000)], FINGERPRINT)).rejects.toThrow(error("NOT_A_SNAPSHOT", 0));
  });

  it("finds a change of any byte, a cut at any place, and bytes too many, and adds nothing then", async () => {
    const from = create(8);
    const bytes = await bytesOf(from, compute(from, "k"));
    const kv = create(8);
    const codes = new Set<string>();
    const attempt = async (damaged: Uint8Array) => {
      const failure = await kv.restore([damaged], FINGERPRINT).catch((reason: unknown) => reason);
      expect(failure).toMatchObject({ name: "PagedKvError" });
      codes.add((failure as { code: string }).code);
    };
    for (let place = 0; place < bytes.length; place++) {
      const damaged = bytes.slice();
      damaged[place]! ^= 1 << (place % 8);
      await attempt(damaged);
      await attempt(bytes.subarray(0, place));
    }
    await attempt(Buffer.concat([bytes, Buffer.alloc(1)]));
    expect(codes).toEqual(new Set(["SNAPSHOT_DAMAGED", "NOT_A_SNAPSHOT", "SNAPSHOT_MISMATCH"]));
    expect([kv.stats().cachedBlocks, kv.freeBlocks, kv.sequenceCount]).toEqual([0, 8, 0]);
    kv.checkIntegrity();
    expect(await kv.restore([bytes], FINGERPRINT)).toHaveLength(12);
  });

  it("closes its source when it stops early", async () => {
    let closed = false;
    async function* source() {
      try {
        yield Buffer.alloc(10_000);
      } finally {
        closed = true;
      }
    }
    await expect(create(8).restore(source(), FINGERPRINT)).rejects.toThrow(error("NOT_A_SNAPSHOT", 0));
    expect(closed).toBe(true);
  });
});
