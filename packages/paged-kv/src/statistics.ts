import type { SequenceContext } from "./sequence-context.js";

/** How full the cache is, and how much it saves. */
export interface Statistics {
  /** Blocks in all, and of these the ones held, the free ones, and those (held or free) that a prompt can find. */
  readonly blocks: number;
  readonly usedBlocks: number;
  readonly freeBlocks: number;
  readonly cachedBlocks: number;
  /** Share of the blocks held, 0 to 1. */
  readonly utilization: number;
  /** Share of the slots in the blocks held that no token stands in, 0 to 1: what paging wastes. */
  readonly waste: number;
  readonly sequences: number;
  /** Sum of the sequences' lengths; a token in a shared block counts once for each. */
  readonly tokens: number;
  /** Tokens that were looked up by `match`, and of these the ones found, since the cache was made. */
  readonly queriedTokens: number;
  readonly hitTokens: number;
  /** Found of looked up, 0 to 1. */
  readonly hitRate: number;
  /** Cached blocks whose content was given up, and shared blocks that were copied to be written, since then. */
  readonly evictedBlocks: number;
  readonly copiedBlocks: number;
}

export function statistics(context: SequenceContext): Statistics {
  const { pool, cache, sequences, queriedTokens, hitTokens, copiedBlocks } = context;
  const { blockSize } = pool;
  let tokens = 0;
  // Written slots of each block, so that a shared one counts once.
  const written = new Int32Array(pool.blockCount);
  for (const { blockTable, length } of sequences) {
    tokens += length;
    for (let i = 0; i * blockSize < length; i++) {
      const block = blockTable[i]!;
      written[block] = Math.max(written[block]!, Math.min(blockSize, length - i * blockSize));
    }
  }
  const held = pool.usedBlocks * blockSize;
  return {
    blocks: pool.blockCount,
    usedBlocks: pool.usedBlocks,
    freeBlocks: pool.freeBlocks,
    cachedBlocks: cache.size,
    utilization: pool.usedBlocks / pool.blockCount,
    waste: held === 0 ? 0 : 1 - written.reduce((sum, count) => sum + count, 0) / held,
    sequences: sequences.size,
    tokens,
    queriedTokens,
    hitTokens,
    hitRate: queriedTokens === 0 ? 0 : hitTokens / queriedTokens,
    evictedBlocks: cache.evictions,
    copiedBlocks,
  };
}
