import { describe, expect, it } from "vitest";
import type { KvStorage } from "./storage.js";
import { storageSuite } from "./storage-suite.js";

/** A small storage of bytes, right in everything unless a method is replaced. */
class ByteStorage implements KvStorage {
  readonly blockCount = 3;
  readonly blockBytes = 64;
  readonly blocks = Array.from({ length: 3 }, () => new Uint8Array(64));

  check(block: number): Uint8Array {
    const bytes = this.blocks[block];
    if (bytes === undefined) throw new RangeError(`no block ${block}`);
    return bytes;
  }

  copyBlock(from: number, to: number): void {
    this.check(to).set(this.check(from));
  }

  async readBlock(block: number): Promise<Uint8Array> {
    return this.check(block).slice();
  }

  async writeBlock(block: number, bytes: Uint8Array): Promise<void> {
    if (bytes.length !== 64) throw new RangeError("64 bytes");
    this.check(block).set(bytes);
  }
}

const bad: Record<string, (storage: ByteStorage) => Partial<KvStorage>> = {
  "gives back the bytes of every block as they were written, and keeps blocks apart": (storage) => ({
    readBlock: () => storage.blocks[0]!.slice(),
  }),
  "copies a block whole, and the two are independent from then on": (storage) => ({
    copyBlock: (from, to) => storage.check(to).set(storage.check(from).subarray(0, 60)),
  }),
  "hands out bytes that stay as they are, and keeps none that it was given": (storage) => ({
    readBlock: (block) => storage.check(block),
  }),
  "takes bytes from anywhere in a larger buffer": (storage) => ({
    writeBlock: (block, bytes) => storage.check(block).set(new Uint8Array(bytes.buffer, 0, 64)),
  }),
  "refuses blocks that it does not have and bytes of another size, before any change": (storage) => ({
    writeBlock: (block, bytes) => storage.check(block).set(bytes.subarray(0, 64)),
  }),
};

describe("storageSuite", () => {
  it.each(storageSuite)("passes an asynchronous storage that $name", async ({ run }) => {
    await run(new ByteStorage());
  });

  it.each(storageSuite)("finds a storage that fails in: $name", async ({ name, run }) => {
    const storage = new ByteStorage();
    await expect(run(Object.assign(storage, bad[name]!(storage)))).rejects.toThrow(/block|byte|refused/);
  });
});
