import type { KvStorage } from "./storage.js";

/** One thing that every storage must do; `run` throws when it does not. The storage has three blocks or more. */
export interface StorageCase {
  readonly name: string;
  run(storage: KvStorage): Promise<void>;
}

/**
 * What a cache expects of its storage, for any test runner:
 *
 * ```js
 * for (const { name, run } of storageSuite) test(name, () => run(new MyStorage()));
 * ```
 */
export const storageSuite: readonly StorageCase[] = [
  {
    name: "gives back the bytes of every block as they were written, and keeps blocks apart",
    async run(storage) {
      for (let block = 0; block < storage.blockCount; block++) await storage.writeBlock(block, pattern(storage, block));
      for (let block = 0; block < storage.blockCount; block++)
        await expectBytes(storage, block, pattern(storage, block));
    },
  },
  {
    name: "copies a block whole, and the two are independent from then on",
    async run(storage) {
      for (const block of [0, 1, 2]) await storage.writeBlock(block, pattern(storage, block));
      storage.copyBlock(2, 0);
      await storage.writeBlock(2, pattern(storage, 7));
      await expectBytes(storage, 0, pattern(storage, 2));
      await expectBytes(storage, 1, pattern(storage, 1));
      await expectBytes(storage, 2, pattern(storage, 7));
    },
  },
  {
    name: "hands out bytes that stay as they are, and keeps none that it was given",
    async run(storage) {
      const given = pattern(storage, 3);
      await storage.writeBlock(0, given);
      given.fill(0xff);
      const read = await storage.readBlock(0);
      await storage.writeBlock(0, pattern(storage, 4));
      expectEqual("the bytes read before the block was written again", read, pattern(storage, 3));
    },
  },
  {
    name: "takes bytes from anywhere in a larger buffer",
    async run(storage) {
      const buffer = new Uint8Array(storage.blockBytes + 3);
      const bytes = buffer.subarray(3);
      bytes.set(pattern(storage, 5));
      await storage.writeBlock(1, bytes);
      await expectBytes(storage, 1, pattern(storage, 5));
    },
  },
  {
    name: "refuses blocks that it does not have and bytes of another size, before any change",
    async run(storage) {
      await storage.writeBlock(0, pattern(storage, 6));
      const good = pattern(storage, 1);
      for (const block of [-1, storage.blockCount, 0.5]) {
        await expectRefusal(`readBlock(${block})`, () => storage.readBlock(block));
        await expectRefusal(`writeBlock(${block})`, () => storage.writeBlock(block, good));
        await expectRefusal(`copyBlock(${block}, 0)`, () => storage.copyBlock(block, 0));
        await expectRefusal(`copyBlock(0, ${block})`, () => storage.copyBlock(0, block));
      }
      const short = good.subarray(1);
      await expectRefusal("writeBlock with a byte too few", () => storage.writeBlock(0, short));
      const long = new Uint8Array(storage.blockBytes + 1);
      await expectRefusal("writeBlock with a byte too many", () => storage.writeBlock(0, long));
      await expectBytes(storage, 0, pattern(storage, 6));
    },
  },
];

/** Bytes that differ between seeds and from place to place; as float16 or float32 they are ordinary numbers. */
function pattern(storage: KvStorage, seed: number): Uint8Array {
  return Uint8Array.from({ length: storage.blockBytes }, (_, i) =>
    i % 2 === 0 ? (31 * i + (i >> 8) + seed) % 251 : 60,
  );
}

async function expectBytes(storage: KvStorage, block: number, expected: Uint8Array): Promise<void> {
  expectEqual(`block ${block}`, await storage.readBlock(block), expected);
}

function expectEqual(what: string, bytes: Uint8Array, expected: Uint8Array): void {
  if (bytes.length !== expected.length) throw new Error(`${what}: ${bytes.length} bytes, expected ${expected.length}`);
  const place = expected.findIndex((byte, i) => bytes[i] !== byte);
  if (place >= 0) throw new Error(`${what}: byte ${place} is ${bytes[place]}, expected ${expected[place]}`);
}

async function expectRefusal(what: string, operation: () => unknown): Promise<void> {
  try {
    await operation();
  } catch {
    return;
  }
  throw new Error(`${what} must be refused with an error`);
}
