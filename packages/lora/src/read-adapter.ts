import { stat } from "node:fs/promises";
import type { BaseShape } from "./base-shape.js";
import { LoraError } from "./errors.js";
import type { LoraAdapter } from "./lora-adapter.js";
import { readGgufAdapter } from "./read-gguf.js";
import { readPeftAdapter } from "./read-peft.js";

/**
 * Reads an adapter: from a folder as PEFT saves it, or from a GGUF file.
 *
 * @param shape of the base that it is for: `readBaseShape`
 * @throws LoraError or GgufError, naming file and tensor
 */
export async function readAdapter(path: string, shape: BaseShape): Promise<LoraAdapter> {
  const found = await stat(path).catch((cause: unknown) => {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new LoraError("unreadable", `cannot be read: ${reason}; pass a folder that PEFT saved, or a GGUF`, {
      path,
      cause,
    });
  });
  return found.isDirectory() ? await readPeftAdapter(path, shape) : await readGgufAdapter(path, shape);
}
