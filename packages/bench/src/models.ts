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

/** Bytes of weights that one decoded token reads: all, but for an embedding table that is not also the LM head. */
export async function decodedBytes(path: string): Promise<number> {
  const { tensors } = await GgufFile.open(path);
  let bytes = 0;
  for (const [name, tensor] of tensors) {
    if (name !== "token_embd.weight" || !tensors.has("output.weight")) bytes += tensor.byteLength;
  }
  return bytes;
}
