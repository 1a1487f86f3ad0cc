import { checkInteger, SchedulerError } from "./errors.js";

/** Tokens `start` to `end - 1` of a prompt, run in one step. */
export interface Chunk {
  readonly start: number;
  readonly end: number;
}

/**
 * Cuts the uncomputed part of one prompt into chunks, for a caller who runs a single prompt and nothing beside it.
 * @param promptTokens tokens of the prompt.
 * @param options `chunkSize`: the most tokens of a chunk; `computed`: tokens whose K and V exist already, 0 if absent.
 * @returns chunks in order that cover `[computed, promptTokens)` exactly; all but the last are `chunkSize` long.
 * @throws SchedulerError `INVALID_ARGUMENT`.
 */
export function planChunks(promptTokens: number, options: { chunkSize: number; computed?: number }): Chunk[] {
  const { chunkSize, computed = 0 } = options;
  checkInteger("promptTokens", promptTokens, 0);
  checkInteger("chunkSize", chunkSize, 1);
  checkInteger("computed", computed, 0);
  if (computed > promptTokens) {
    throw new SchedulerError(
      "INVALID_ARGUMENT",
      `computed must be at most the ${promptTokens} tokens of the prompt, got ${computed}`,
      computed,
    );
  }
  const chunks: Chunk[] = [];
  for (let start = computed; start < promptTokens; start += chunkSize) {
    chunks.push({ start, end: Math.min(start + chunkSize, promptTokens) });
  }
  return chunks;
}
