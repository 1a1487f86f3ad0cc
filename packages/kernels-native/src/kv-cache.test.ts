import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Device } from "./device.js";
import type { KvShape } from "./kv-cache.js";
import { failure } from "./test-errors.js";
import { relativeError } from "./test-reference.js";
import { TinyModel, tinyWeights } from "./test-tiny-model.js";

const shape: KvShape = { layers: 3, kvHeads: 2, headDim: 32, blockSize: 16, blocks: 5, type: "f16" };
let device: Device;

beforeAll(() => {
  device = Device.open({ threads: 1 });
});
afterAll(() => device.dispose());

describe("KvCache", () => {
  it("holds keys and values of every layer, head, slot and dimension", () => {
    using half = device.createKvCache(shape);
    using full = device.createKvCache({ ...shape, type: "f32" });
    using integers = device.createKvCache({ ...shape, type: "q8" });
    const values = 2 * 3 * 2 * 32 * 16 * 5;
    expect(half.byteLength).toBe(2 * values);
    expect(full.byteLength).toBe(4 * values);
    expect(integers.byteLength).toBe(values + values / 8); // a scale of 4 bytes for the 32 numbers of a head
    expect(half.shape).toEqual(shape);
    expect(half.layer(2).index).toBe(2);
    expect(half.layer(2).cache).toBe(half);
  });

  it("copies, reads and writes blocks of all layers", async () => {
    using cache = device.createKvCache(shape);
    expect(cache.blockByteLength).toBe(cache.byteLength / shape.blocks);
    const bytes = Uint8Array.from({ length: cache.blockByteLength }, (_, i) => (i * 7) % 251);
    cache.writeBlock(3, bytes);
    cache.copyBlock(3, 0);
    expect(cache.readBlock(0)).toEqual(bytes);
    expect(cache.readBlock(1)).toEqual(new Uint8Array(cache.blockByteLength));
    await failure("invalid-argument", () => cache.copyBlock(0, 5));
    await failure("invalid-argument", () => cache.readBlock(-1));
    await failure("invalid-argument", () => cache.writeBlock(0, bytes.subarray(1)));
  });

  it("refuses shapes and layers that are out of range", async () => {
    const cases: [Partial<Record<keyof KvShape, unknown>>, string][] = [
      [{ layers: 0 }, "shape.layers is 0: it must be an integer from 1 to 2147483647"],
      [{ headDim: 40 }, "shape.headDim is 40: it must be a multiple of 16"],
      [{ blockSize: 8 }, "shape.blockSize is 8: it must be an integer from 16 to 2147483647"],
      [{ blocks: 1.5 }, "shape.blocks is 1.5: it must be an integer from 1 to 2147483647"],
      [{ type: "q4" }, 'shape.type is "q4": it must be "f16", "f32" or "q8"'],
    ];
    for (const [change, message] of cases) {
      const error = await failure("invalid-argument", () => device.createKvCache({ ...shape, ...change } as KvShape));
      expect(error.message).toBe(message);
    }
    using cache = device.createKvCache(shape);
    expect((await failure("invalid-argument", () => cache.layer(3))).message).toBe(
      "index is 3: it must be an integer from 0 to 2",
    );
  });

  it("fails with out-of-memory beyond what the system has", async () => {
    const huge = { ...shape, layers: 1000, kvHeads: 1000, headDim: 1024, blockSize: 1024, blocks: 2 ** 31 - 1 };
    await failure("out-of-memory", () => device.createKvCache(huge));
  });

  it("reserves without touching memory", () => {
    const before = process.memoryUsage.rss();
    using cache = device.createKvCache({ ...shape, headDim: 128, blocks: 8192 }); // 400 MB
    expect(cache.byteLength).toBe(2 * 2 * 3 * 2 * 128 * 16 * 8192);
    expect(process.memoryUsage.rss() - before).toBeLessThan(cache.byteLength / 4);
  });

  it("tells the garbage collector its size, so that forgotten ones go", async () => {
    let collected = 0;
    const registry = new FinalizationRegistry(() => collected++);
    for (let i = 0; i < 64; i++) {
      registry.register(device.createKvCache({ ...shape, blocks: 5000 }), i); // 61 MB each
      await new Promise((resolve) => setTimeout(resolve, 10)); // the collector works between the turns
    }
    expect(collected).toBeGreaterThan(10);
  });

  it.each([
    ["f16", 1e-3],
    ["q8", 1e-2],
  ] as const)("in %s is close to float32", async (type, bound) => {
    const weights = tinyWeights("F32");
    using full = await TinyModel.load(device, weights, "f32");
    using small = await TinyModel.load(device, weights, type);
    const tokens = [5, 17, 99, 0, 42, 8, 64];
    const expected = (await full.step(tokens, 0)).logits;
    const actual = (await small.step(tokens, 0)).logits;
    expect(actual).not.toEqual(expected);
    expect(relativeError(actual, expected)).toBeLessThan(bound);
  });
});
