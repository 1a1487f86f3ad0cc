import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { GgufError } from "@niwaki/gguf";
import { expect, test } from "vitest";
import { LoraError } from "./errors.js";
import type { LoraAdapter } from "./lora-adapter.js";
import { matrixValues } from "./lora-target.js";
import { randomNumbers } from "./random.js";
import { readAdapter } from "./read-adapter.js";
import { randomAdapter, temporaryFolder, tinyShape } from "./test-adapters.js";
import { mutate } from "./test-mutation.js";
import { writeGgufAdapter } from "./write-gguf.js";
import { writePeftAdapter } from "./write-peft.js";

const at = temporaryFolder();

/** What was read must fit the base and be finite, whatever was in the file. */
function checkAdapter(adapter: LoraAdapter): void {
  expect(adapter.targets.length).toBeGreaterThan(0);
  for (const { layer, module, rank, scale, inputs, outputs, a, b, magnitude } of adapter) {
    expect([layer < tinyShape.layers, [inputs, outputs]]).toEqual([true, tinyShape.modules[module]]);
    const values = [...matrixValues(a), ...matrixValues(b), ...(magnitude ?? []), scale];
    expect(values).toHaveLength(rank * (inputs + outputs) + (magnitude?.length ?? 0) + 1);
    expect(values.every(Number.isFinite)).toBe(true);
  }
}

test("10,000 damaged adapters, PEFT and GGUF: read or refused, in bounded time and memory", {
  timeout: 120_000,
}, async () => {
  const options = {
    rank: 2,
    targetModules: ["q_proj", "up_proj"],
    rankPattern: { "1.mlp.up_proj": 1 },
    layersToTransform: [1],
  };
  for (const folder of ["config", "weights"])
    await writePeftAdapter(randomAdapter({ ...options, useDora: true }), at(folder));
  await writeGgufAdapter(randomAdapter(options), at("adapter.gguf"));
  const cases = [
    { read: at("config"), damaged: join(at("config"), "adapter_config.json") },
    { read: at("weights"), damaged: join(at("weights"), "adapter_model.safetensors") },
    { read: at("adapter.gguf"), damaged: at("adapter.gguf") },
  ].map(({ read, damaged }) => ({ read, seed: readFileSync(damaged), file: openSync(damaged, "r+") }));
  const random = randomNumbers(11);
  const outcomes = new Map<string, number>();
  let [slowest, largest] = [0, 0];
  for (let i = 0; i < 10_000; i++) {
    const { read, seed, file } = cases[i % 3]!;
    const damaged = mutate(seed, random, i % 4 === 0 ? seed.length : 900);
    // Overwritten in place: emptying a file first makes some file systems write it to disk each time.
    writeSync(file, damaged, 0, damaged.length, 0);
    ftruncateSync(file, damaged.length);
    const [start, before] = [performance.now(), process.memoryUsage().arrayBuffers];
    let outcome = "read";
    try {
      checkAdapter(await readAdapter(read, tinyShape));
    } catch (error) {
      if (!(error instanceof LoraError || error instanceof GgufError)) throw error;
      expect(error.path).toBeDefined();
      expect(error.message.length).toBeGreaterThan(20);
      outcome = error.code;
    }
    slowest = Math.max(slowest, performance.now() - start);
    largest = Math.max(largest, process.memoryUsage().arrayBuffers - before);
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  }
  for (const { file } of cases) closeSync(file);
  expect(slowest).toBeLessThan(5000);
  expect(largest).toBeLessThan(16 * 2 ** 20);
  // The damage must be such that all ways are taken.
  for (const code of ["read", "corrupt", "truncated", "bad-config", "wrong-rank", "unknown-tensor", "not-finite"]) {
    expect([code, outcomes.get(code) ?? 0]).toEqual([code, expect.toSatisfy((count: number) => count >= 10)]);
  }
});
