import { existsSync, mkdirSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GgufFile } from "@niwaki/gguf";
import { type RandomModelShape, shapes, writeRandomModel } from "@niwaki/testing";

export type ShapeName = keyof typeof shapes;

/** @throws Error naming the shapes that there are. */
export function shapeName(name: string): ShapeName {
  if (name in shapes) return name as ShapeName;
  throw new Error(`unknown shape ${name}; known are ${Object.keys(shapes).join(", ")}`);
}

/** A random model of this shape, written once and kept in the system's temporary folder for later runs. */
export async function cachedRandomModel(name: string, shape: RandomModelShape, seed: number): Promise<string> {
  const directory = outputDirectory();
  const path = join(directory, `${name}-seed${seed}.gguf`);
  if (!existsSync(path)) {
    console.error(`writing ${path} …`);
    const unfinished = `${path}.${process.pid}`;
    await writeRandomModel(unfinished, shape, seed);
    renameSync(unfinished, path);
  }
  return path;
}

/** Where benchmarks keep what they write. */
export function outputDirectory(): string {
  const directory = join(tmpdir(), "niwaki-bench");
  mkdirSync(directory, { recursive: true });
  return directory;
}

/** What every step of a model reads and computes with: all weights but an embedding table that is not also the LM head. */
export interface ModelSize {
  /** In the file. */
  readonly bytes: number;
  readonly layerWeights: number;
  /** Of the LM head, which only rows with logits pass. */
  readonly headWeights: number;
}

export async function modelSize(path: string): Promise<ModelSize> {
  const { tensors } = await GgufFile.open(path);
  const head = tensors.has("output.weight") ? "output.weight" : "token_embd.weight";
  const size = { bytes: 0, layerWeights: 0, headWeights: 0 };
  for (const [name, { byteLength, dims }] of tensors) {
    if (name === "token_embd.weight" && name !== head) continue;
    size.bytes += byteLength;
    size[name === head ? "headWeights" : "layerWeights"] += dims.reduce((product, dim) => product * dim, 1);
  }
  return size;
}
