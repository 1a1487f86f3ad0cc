import { equal } from "node:assert/strict";
import type { AdapterChoice } from "./adapters.js";
import { type LoadOptions, Qwen3Model } from "./model.js";

/** Logits of every position, [tokens, vocabulary]. */
export async function allLogits(
  path: string,
  tokens: readonly number[],
  options: LoadOptions = {},
): Promise<Float32Array> {
  await using model = await Qwen3Model.load(path, { contextLength: 256, ...options });
  return await collectLogits(model, tokens);
}

export async function collectLogits(
  model: Qwen3Model,
  tokens: readonly number[],
  adapter?: AdapterChoice,
): Promise<Float32Array> {
  const { vocabulary } = model.config;
  const all = new Float32Array(tokens.length * vocabulary);
  const onRows = (start: number, logits: Float32Array) => all.set(logits, start * vocabulary);
  await model.logits(tokens, onRows, adapter === undefined ? {} : { adapter });
  return all;
}

/** Compares float32 numbers as bits and names the first that differs. */
export function sameBits(actual: Float32Array, expected: Float32Array): void {
  equal(actual.length, expected.length);
  const a = new Uint32Array(actual.buffer, actual.byteOffset, actual.length);
  const b = new Uint32Array(expected.buffer, expected.byteOffset, expected.length);
  const at = a.findIndex((bits, i) => bits !== b[i]);
  equal(at === -1 ? "equal" : `${actual[at]} is not ${expected[at]} at ${at}`, "equal");
}
