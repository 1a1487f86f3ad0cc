// For tests: a base of small matrices, adapters of it, and a folder to keep them in.
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { quantize } from "@niwaki/gguf";
import { afterAll, beforeAll } from "vitest";
import type { BaseShape } from "./base-shape.js";
import { LoraAdapter } from "./lora-adapter.js";
import { type LoraConfig, loraConfig } from "./lora-config.js";
import type { LoraMatrix, LoraType } from "./lora-target.js";
import { randomNumbers } from "./random.js";

/** Three layers; hidden 12, ffn 20, queries 16 wide, keys and values 4. */
export const tinyShape: BaseShape = {
  architecture: "qwen3",
  layers: 3,
  modules: {
    q_proj: [12, 16],
    k_proj: [12, 4],
    v_proj: [12, 4],
    o_proj: [16, 12],
    gate_proj: [12, 20],
    up_proj: [12, 20],
    down_proj: [20, 12],
  },
};

/** `count` values in (-1, 1). */
export function randomValues(count: number, seed: number): Float32Array {
  const random = randomNumbers(seed);
  return Float32Array.from({ length: count }, () => 2 * random() - 1);
}

/** An adapter of {@link tinyShape} with random A, B and, for DoRA, magnitudes. */
export function randomAdapter(options: Partial<LoraConfig> = {}, seed = 1, type: LoraType = "F32"): LoraAdapter {
  let next = seed * 1000;
  const matrix = (count: number) => ({ type, data: quantize(type, randomValues(count, next++)) });
  return LoraAdapter.from(loraConfig(options), tinyShape, ({ rank, inputs, outputs }) => ({
    a: matrix(rank * inputs),
    b: matrix(outputs * rank),
    magnitude: options.useDora ? randomValues(outputs, next++).map((value) => 2 + value) : undefined,
  }));
}

/** An adapter's targets with short texts for their bytes, which compare in no time. */
export function comparable({ targets }: LoraAdapter) {
  const short = ({ type, data }: LoraMatrix) => `${type} ${createHash("sha256").update(data).digest("hex")}`;
  return targets.map((target) => ({ ...target, a: short(target.a), b: short(target.b) }));
}

/** A folder that exists while a test file runs; call with a name for its path. */
export function temporaryFolder(): (name: string) => string {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "niwaki-lora-"));
  });
  afterAll(() => rm(folder, { recursive: true }));
  return (name) => join(folder, name);
}
