import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { dequantize } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { GgufFile } from "./gguf-file.js";
import { type GgufHeader, parseHeader } from "./header.js";
import { MoreBytesNeeded } from "./header-cursor.js";
import { quantize } from "./quantize.js";
import { SafetensorsFile } from "./safetensors-file.js";
import { type TensorType, tensorTypes } from "./tensor-type.js";
import { temporaryFolder } from "./test-folder.js";
import { mutate, randomNumbers } from "./test-mutation.js";
import { entry, rawGguf, tensorInfo, text, u32, u64 } from "./test-raw-gguf.js";
import { writeGguf } from "./write-gguf.js";

const at = temporaryFolder();

/** A file (or its first bytes) to damage. */
interface Seed {
  readonly bytes: Buffer;
  /** Bytes that the file has beyond those. */
  readonly beyond: number;
}

const seeds: Seed[] = [];
let published: Buffer;

beforeAll(async () => {
  const path = at("seed.gguf");
  const values = Float32Array.from({ length: 128 * 16 }, (_, i) => Math.sin(i));
  await writeGguf(path, {
    metadata: {
      "general.architecture": "qwen3",
      "general.alignment": 32,
      "qwen3.block_count": 2,
      "qwen3.rope.freq_base": 1e6,
      "tokenizer.ggml.tokens": Array.from({ length: 20 }, (_, i) => `Ġ${i}`),
      "tokenizer.ggml.token_type": { type: "int32[]", value: new Array(20).fill(1) },
      "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
      "tokenizer.ggml.add_bos_token": false,
    },
    tensors: (Object.keys(tensorTypes) as TensorType[]).map((type) => ({
      name: `blk.0.${type}.weight`,
      dims: [128, 16],
      type,
      data: quantize(type, values),
    })),
  });
  seeds.push({ bytes: await readFile(path), beyond: 0 });
  // The header of a model of 1.15 GB, of which only the header is at hand.
  const layer = 4096 * 12288;
  const tensors = Array.from({ length: 4 }, (_, i) =>
    tensorInfo(`blk.${i}.ffn_gate.weight`, [4096, 12288], 41, (layer / 128) * 18 * i),
  );
  const nested = entry(
    "nested",
    9,
    u32(9),
    u64(2),
    u32(8),
    u64(2),
    text("a"),
    text("b"),
    u32(0),
    u64(3),
    Buffer.alloc(3),
  );
  const header = rawGguf({
    entries: [nested, entry("u64", 10, u64(5)), entry("flags", 9, u32(7), u64(4), Buffer.from([1, 0, 1, 1]))],
    tensors,
    data: new Uint8Array(1),
  });
  seeds.push({ bytes: header.subarray(0, -1), beyond: (layer / 128) * 18 * 4 });
  published = await readFile(new URL("../../testing/fixtures/q1-tied.gguf", import.meta.url));
});

/** Checks that `header` announces nothing that a file of `fileSize` bytes does not hold. */
function checkHeader(header: GgufHeader | GgufFile, fileSize: number): void {
  for (const { name, offset, byteLength, dims } of header.tensors.values()) {
    if (!(offset > 0 && byteLength > 0 && offset + byteLength <= fileSize) || dims.some((length) => length < 1)) {
      expect.fail(`tensor ${name} is not inside the file`);
    }
  }
}

function checkError(error: unknown): void {
  if (error instanceof GgufError && error.path !== undefined && error.message.length > 20) return;
  throw error;
}

/** The bytes of memory in use, inside and outside the JavaScript heap. */
function memoryInUse(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** What one parse may take: the parser's own buffer of 2 MB, and a small multiple of the input. */
const allowedBytes = 8 * 2 ** 20;
const allowedMilliseconds = 2000;

describe("damaged", () => {
  it("100,000 headers: read or refused, in bounded time and memory", { timeout: 120_000 }, async () => {
    const random = randomNumbers(7);
    const outcomes = { read: 0, refused: 0, incomplete: 0 };
    let [slowest, largest, before] = [0, 0, memoryInUse()];
    for (let i = 0; i < 100_000; i++) {
      const { bytes, beyond } = i % 100 === 0 ? { bytes: published, beyond: 0 } : seeds[i % 2]!;
      const damaged = mutate(bytes, random, bytes === published ? 20_000 : 1000);
      const fileSize = damaged.length + beyond;
      const start = performance.now();
      try {
        checkHeader(await parseHeader(damaged, fileSize, "damaged.gguf"), fileSize);
        outcomes.read++;
      } catch (error) {
        if (error instanceof MoreBytesNeeded) {
          expect(error.end > damaged.length && error.end <= fileSize).toBe(true);
          outcomes.incomplete++;
        } else {
          checkError(error);
          outcomes.refused++;
        }
      }
      slowest = Math.max(slowest, performance.now() - start);
      const after = memoryInUse();
      largest = Math.max(largest, after - before);
      before = after;
    }
    expect(slowest).toBeLessThan(allowedMilliseconds);
    expect(largest).toBeLessThan(allowedBytes);
    // The damage must be such that all ways are taken.
    expect(Math.min(...Object.values(outcomes))).toBeGreaterThan(1000);
  });

  it("10,000 files: read with a tensor, or refused", { timeout: 120_000 }, async () => {
    const random = randomNumbers(8);
    const path = at("damaged.gguf");
    const file = openSync(path, "w");
    const outcomes = { read: 0, refused: 0 };
    for (let i = 0; i < 10_000; i++) {
      const seed = i % 100 === 0 ? published : seeds[0]!.bytes;
      const damaged = mutate(seed, random, i % 3 === 0 ? seed.length : 2000);
      // Overwritten in place: emptying a file first makes some file systems write it to disk each time.
      writeSync(file, damaged, 0, damaged.length, 0);
      ftruncateSync(file, damaged.length);
      try {
        const opened = await GgufFile.open(path);
        checkHeader(opened, damaged.length);
        const names = [...opened.tensors.keys()];
        if (names.length === 0) continue;
        const { name, type, dims } = opened.tensor(names[Math.floor(random() * names.length)]!);
        const bytes = await opened.readTensor(name);
        expect(bytes).toHaveLength(opened.tensor(name).byteLength);
        const count = dims.reduce((product, length) => product * length, 1);
        if (type !== null) expect(dequantize(type, bytes, count)).toHaveLength(count);
        outcomes.read++;
      } catch (error) {
        checkError(error);
        outcomes.refused++;
      }
    }
    closeSync(file);
    expect(Math.min(...Object.values(outcomes))).toBeGreaterThan(1000);
  });

  it("10,000 safetensors files: read with a tensor, or refused", { timeout: 120_000 }, async () => {
    const random = randomNumbers(9);
    const adapter = new URL("../../testing/fixtures/q1-tied.lora-qv-rslora/adapter_model.safetensors", import.meta.url);
    const bytes = await readFile(adapter);
    const path = at("damaged.safetensors");
    const file = openSync(path, "w");
    const outcomes = { read: 0, refused: 0 };
    for (let i = 0; i < 10_000; i++) {
      const damaged = mutate(bytes, random, i % 4 === 0 ? bytes.length : 1500);
      writeSync(file, damaged, 0, damaged.length, 0);
      ftruncateSync(file, damaged.length);
      try {
        const opened = await SafetensorsFile.open(path);
        const names = [...opened.tensors.keys()];
        const name = names[Math.floor(random() * names.length)];
        if (name !== undefined) expect(await opened.readTensor(name)).toHaveLength(opened.tensor(name).byteLength);
        outcomes.read++;
      } catch (error) {
        checkError(error);
        outcomes.refused++;
      }
    }
    closeSync(file);
    expect(Math.min(...Object.values(outcomes))).toBeGreaterThan(1000);
  });
});
