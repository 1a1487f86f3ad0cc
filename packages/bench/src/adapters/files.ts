import { existsSync, renameSync } from "node:fs";
import { join } from "node:path";
import { type BaseShape, LoraAdapter, type LoraConfig, loraConfig, writeGgufAdapter } from "@niwaki/lora";
import { outputDirectory } from "../models.js";

/** A random float16 adapter for the model of this name, written once and kept for later runs. */
export async function cachedRandomAdapter(
  model: string,
  base: BaseShape,
  options: Partial<LoraConfig>,
  seed: number,
): Promise<string> {
  const config = loraConfig(options);
  const modules = typeof config.targetModules === "string" ? config.targetModules : config.targetModules.length;
  const path = join(outputDirectory(), `${model}-lora-r${config.rank}-${modules}-seed${seed}.gguf`);
  if (!existsSync(path)) {
    console.error(`writing ${path} …`);
    const random = float16Source(seed);
    const adapter = LoraAdapter.from(config, base, ({ rank, inputs, outputs }) => ({
      a: { type: "F16", data: random(rank * inputs) },
      b: { type: "F16", data: random(outputs * rank) },
    }));
    const unfinished = `${path}.${process.pid}`;
    await writeGgufAdapter(adapter, unfinished);
    renameSync(unfinished, path);
  }
  return path;
}

/** Values of either sign from 1/64 to 1/32: those of A in a layer of a few thousand inputs are no larger. */
function float16Source(seed: number): (count: number) => Uint8Array {
  let state = seed | 1;
  return (count) => {
    const values = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      // Xorshift (Marsaglia, "Xorshift RNGs", 2003).
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      values[i] = 0x2400 | (state & 0x83ff);
    }
    return new Uint8Array(values.buffer);
  };
}
