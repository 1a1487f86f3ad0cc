import { open, readFile } from "node:fs/promises";
import { Qwen3Model } from "@niwaki/qwen3-model";
import { Command } from "commander";
import { addRunFlags, given, loadOptions, type ModelFlags, wholeNumber } from "../flags.js";
import { loadAdapters } from "../load.js";

interface LogitsFlags extends Omit<ModelFlags, "model"> {
  tokens: string;
  out: string;
  chunk?: number;
}

export function logitsCommand(): Command {
  const command = new Command("logits")
    .description("Write the logits of every position, to compare any engine with this one.")
    .argument("<model>", "a Qwen3 GGUF")
    .requiredOption("--tokens <file>", "token ids, a JSON array")
    .requiredOption("--out <file>", "raw little-endian float32, [tokens, vocabulary]")
    .option("--chunk <tokens>", "tokens a step; 256 if absent", wholeNumber);
  return addRunFlags(command).action(logits);
}

async function logits(path: string, flags: LogitsFlags): Promise<void> {
  const tokens = await readTokens(flags.tokens);
  const contextLength = Math.max(1, tokens.length);
  await using model = await Qwen3Model.load(path, {
    ...loadOptions(flags),
    contextLength,
    ...given({ chunkSize: flags.chunk }),
  });
  const adapters = await loadAdapters(model, flags.lora);
  const out = await open(flags.out, "w");
  try {
    const onRows = (_: number, rows: Float32Array) =>
      out.writeFile(new Uint8Array(rows.buffer, rows.byteOffset, rows.byteLength));
    await model.logits(tokens, onRows, adapters);
  } finally {
    await out.close();
  }
}

async function readTokens(path: string): Promise<number[]> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    throw new Error(`cannot read token ids from ${path}: ${(error as Error).message}`);
  }
  if (!Array.isArray(value) || !value.every((id) => typeof id === "number")) {
    throw new Error(`${path} must hold a JSON array of numbers, the token ids.`);
  }
  return value;
}
