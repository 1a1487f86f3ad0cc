import { describe, expect, it } from "vitest";
import { HostKvStorage } from "./host-storage.js";
import { storageSuite } from "./storage-suite.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "PagedKvError", code, value });

describe("HostKvStorage", () => {
  it.each(storageSuite)("$name", async ({ run }) => {
    await run(new HostKvStorage({ blockCount: 4, blockSize: 3, layerCount: 2, width: 5 }));
  });

  it("keeps every layer and slot apart", () => {
    const storage = new HostKvStorage({ blockCount: 3, blockSize: 1, layerCount: 2, width: 2 });
    for (let layer = 0; layer < 2; layer++) {
      for (let slot = 0; slot < 3; slot++) {
        const n = 10 * layer + slot;
        storage.write(layer, slot, Float32Array.of(n, -n), Float32Array.of(n + 0.5, -n - 0.5));
      }
    }
    const key = new Float32Array(2);
    const value = new Float32Array(2);
    for (let layer = 0; layer < 2; layer++) {
      for (let slot = 0; slot < 3; slot++) {
        const n = 10 * layer + slot;
        storage.read(layer, slot, key, value);
        expect([...key, ...value]).toEqual([n, -n, n + 0.5, -n - 0.5]);
      }
    }
  });

  it("knows what was written until it is forgotten, in every layer", () => {
    const storage = new HostKvStorage({ blockCount: 2, blockSize: 2, layerCount: 2, width: 1 });
    const vector = Float32Array.of(1);
    for (const slot of [0, 1, 2, 3]) {
      storage.write(0, slot, vector, vector);
      if (slot !== 3) storage.write(1, slot, vector, vector);
    }
    storage.forget(1, 2);
    expect([0, 1, 2, 3].map((slot) => storage.isWritten(0, slot))).toEqual([true, false, false, true]);
    expect([0, 1, 2, 3].map((slot) => storage.isWritten(1, slot))).toEqual([true, false, false, false]);
  });

  it("lays out a block layer by layer, keys before values, and reads it back token by token", () => {
    const storage = new HostKvStorage({ blockCount: 2, blockSize: 2, layerCount: 2, width: 1 });
    storage.writeBlock(1, new Uint8Array(Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8).buffer));
    const [key, value] = [new Float32Array(1), new Float32Array(1)];
    storage.read(1, 3, key, value);
    expect([key[0], value[0]]).toEqual([6, 8]);
    storage.read(0, 2, key, value);
    expect([key[0], value[0]]).toEqual([1, 3]);
    expect(storage.blockBytes).toBe(32);
  });

  it("copies with a block what of it was written, and reads whole blocks only when all was", () => {
    const storage = new HostKvStorage({ blockCount: 3, blockSize: 2, layerCount: 2, width: 1 });
    const vector = Float32Array.of(1);
    for (const layer of [0, 1]) storage.write(layer, 0, vector, vector);
    storage.write(0, 1, vector, vector);
    storage.copyBlock(0, 2);
    expect([4, 5].map((slot) => [storage.isWritten(0, slot), storage.isWritten(1, slot)])).toEqual([
      [true, true],
      [true, false],
    ]);
    expect(() => storage.readBlock(2)).toThrow(error("UNWRITTEN_SLOT", 2));
    storage.write(1, 5, vector, vector);
    expect(storage.readBlock(2)).toHaveLength(32);
  });

  it("refuses layers, slots, widths and sizes outside its own", () => {
    const storage = new HostKvStorage({ blockCount: 2, blockSize: 2, layerCount: 2, width: 3 });
    const good = new Float32Array(3);
    expect(() => storage.write(2, 0, good, good)).toThrow(error("INVALID_ARGUMENT", 2));
    expect(() => storage.write(0, 4, good, good)).toThrow(error("INVALID_ARGUMENT", 4));
    expect(() => storage.write(0, 0, new Float32Array(2), good)).toThrow(error("INVALID_ARGUMENT", 2));
    expect(() => storage.write(0, 0, good, new Float32Array(4))).toThrow(error("INVALID_ARGUMENT", 4));
    expect(() => storage.read(0, -1, good, good)).toThrow(error("INVALID_ARGUMENT", -1));
    expect(() => storage.isWritten(-1, 0)).toThrow(error("INVALID_ARGUMENT", -1));
    expect(storage.isWritten(0, 0)).toBe(false);
    expect(() => new HostKvStorage({ blockCount: 0, blockSize: 2, layerCount: 1, width: 1 })).toThrow(
      error("INVALID_ARGUMENT", 0),
    );
  });
});
