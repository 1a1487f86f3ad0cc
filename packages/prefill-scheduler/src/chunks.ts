import { checkInteger, SchedulerError } from "./errors.js";

/** Tokens `start` to `end - 1` of a prompt, run in one step. */
export interface Chunk {
  readonly start: number;
  readonly end: number;
}

/** A chunk of a prompt that runs alone. */
export interface PromptChunk extends Chunk {
  /** Tokens of the chunk that no chunk before it had; the others overlap the end of the one before. */
  readonly newTokens: number;
  /** Share of the prompt that is computed when the chunk has run: 1 for the last. */
  readonly progress: number;
}

export interface ChunkOptions {
  /** The most tokens of a chunk. */
  chunkSize: number;
  /**
   * Tokens that a chunk repeats of the one before it, for models that see nothing but the chunk; less than `chunkSize`.
   * Default 0: a chunk finds the tokens before it in the cache.
   */
  overlap?: number;
  /** Tokens whose K and V exist already. Default 0. */
  computed?: number;
}

/**
 * Cuts the uncomputed part of one prompt into chunks, for a caller who runs a single prompt and nothing beside it.
 * @param promptTokens tokens of the prompt.
 * @returns chunks in order that cover `[computed, promptTokens)`; all but the last are `chunkSize` long, and each has
 * a token that is new.
 * @throws SchedulerError `INVALID_ARGUMENT`.
 */
export function planChunks(promptTokens: number, options: ChunkOptions): PromptChunk[] {
  const { chunkSize, overlap = 0, computed = 0 } = options;
  checkInteger("promptTokens", promptTokens, 0);
  checkInteger("chunkSize", chunkSize, 1);
  checkInteger("overlap", overlap, 0, chunkSize - 1);
  checkInteger("computed", computed, 0, promptTokens);
  const chunks: PromptChunk[] = [];
  for (let done = computed; done < promptTokens; ) {
    const start = chunks.length === 0 ? done : done - overlap;
    const end = Math.min(start + chunkSize, promptTokens);
    chunks.push({ start, end, newTokens: end - done, progress: end / promptTokens });
    done = end;
  }
  return chunks;
}

/** What memory of a prompt depends on. */
export interface AttentionShape {
  layers: number;
  heads: number;
  /** Heads of K and V; fewer than `heads` with grouped queries. */
  kvHeads: number;
  headDimension: number;
  /** Bytes of one number of K or V. Default 2 (float16). */
  kvBytes?: number;
  /** Bytes of one score. Default 4 (float32). */
  scoreBytes?: number;
}

/** Bytes. */
export interface PromptMemory {
  /** K and V of all tokens in all layers, as they stay. */
  readonly keysAndValues: number;
  /**
   * Scores of one layer at their largest, for an attention that writes them out: every row of a chunk against every token
   * up to the chunk's end. Not chunk × chunk; it grows with the prompt. An attention by blocks needs a small part of it.
   */
  readonly scores: number;
}

/**
 * The memory that a prompt takes when it runs in these chunks.
 * @throws SchedulerError `INVALID_ARGUMENT`.
 */
export function promptMemory(chunks: readonly Chunk[], shape: AttentionShape): PromptMemory {
  const { layers, heads, kvHeads, headDimension, kvBytes = 2, scoreBytes = 4 } = shape;
  for (const [name, value] of Object.entries({ layers, heads, kvHeads, headDimension, kvBytes, scoreBytes })) {
    checkInteger(name, value, 1);
  }
  let tokens = 0;
  let scores = 0;
  for (const { start, end } of chunks) {
    if (!(start >= 0 && start < end)) {
      throw new SchedulerError("INVALID_ARGUMENT", `a chunk must not be empty, got ${start} to ${end}`, start);
    }
    tokens = Math.max(tokens, end);
    scores = Math.max(scores, (end - start) * end);
  }
  return {
    keysAndValues: 2 * layers * kvHeads * headDimension * kvBytes * tokens,
    scores: heads * scores * scoreBytes,
  };
}
