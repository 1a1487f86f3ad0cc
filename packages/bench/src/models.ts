import { existsSync, mkdirSync, renameSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RandomModelShape, writeRandomModel } from "@niwaki/testing";

/** A random model of this shape, written once and kept in the system's temporary folder for later runs. */
export async function cachedRandomModel(name: string, shape: RandomModelShape, seed: number): Promise<string> {
  const directory = join(tmpdir(), "niwaki-bench");
  mkdirSync(directory, { recursive: true });
  const path = join(directory, `${name}-seed${seed}.gguf`);
  if (!existsSync(path)) {
    console.error(`writing ${path} …`);
    const unfinished = `${path}.${process.pid}`;
    await writeRandomModel(unfinished, shape, seed);
    renameSync(unfinished, path);
  }
  return path;
}
