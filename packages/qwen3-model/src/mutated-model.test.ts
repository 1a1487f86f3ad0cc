import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fixturePath } from "@niwaki/testing";
import { afterAll, expect, it } from "vitest";
import { Qwen3Model } from "./model.js";

const TYPED_ERRORS = new Set(["GgufError", "TokenizerError", "ModelError", "KernelError"]);
const FILES = 1000;

/** A small seeded generator (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const folder = mkdtempSync(join(tmpdir(), "niwaki-mutated-"));
afterAll(() => rmSync(folder, { recursive: true }));

it(`loads and runs ${FILES} damaged files, or refuses them with a typed error`, { timeout: 120_000 }, async () => {
  const sound = readFileSync(fixturePath("q1-tied.gguf"));
  const path = join(folder, "damaged.gguf");
  const random = randomNumbers(20);
  const below = (limit: number) => Math.floor(random() * limit);
  const ends = new Map<string, number>();
  // Half of the damage is to the header and its numbers, which decide what is read and how much.
  const header = 19_310;
  for (let i = 0; i < FILES; i++) {
    let bytes = Buffer.from(sound);
    for (let n = 1 + below(3); n > 0; n--) {
      const at = below(random() < 0.5 ? Math.min(header, bytes.length) : bytes.length);
      const kind = below(4);
      if (kind === 0) bytes[at]! ^= 1 << below(8);
      else if (kind === 1) bytes.writeUInt32LE(below(2 ** 32), Math.min(at, bytes.length - 4));
      else if (kind === 2) bytes.fill(0xff, at, at + 1 + below(8));
      else if (random() < 0.3) bytes = bytes.subarray(0, Math.max(8, at));
    }
    writeFileSync(path, bytes);
    let end = "ran";
    try {
      await using model = await Qwen3Model.load(path, { contextLength: 32, threads: 1 });
      for await (const piece of model.generate([1, 2, 3], { maxTokens: 2 })) if (piece.finishReason !== null) break;
    } catch (error) {
      end = (error as Error).name;
      expect(TYPED_ERRORS, String((error as Error).stack)).toContain(end);
    }
    ends.set(end, (ends.get(end) ?? 0) + 1);
  }
  // Both kinds must occur, or the damage was of one kind only.
  expect(ends.get("ran")).toBeGreaterThan(50);
  expect(ends.get("GgufError")).toBeGreaterThan(50);
});
