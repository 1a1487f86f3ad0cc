import type { BlockPool } from "./block-pool.js";
import type { PrefixCache } from "./prefix-cache.js";
import type { Sequence } from "./sequence.js";
import type { KvStorage } from "./storage.js";

/** What the sequences of one cache share. */
export interface SequenceContext {
  readonly pool: BlockPool;
  readonly cache: PrefixCache;
  readonly storage: KvStorage | undefined;
  readonly sequences: Set<Sequence>;
  /** Free blocks that a sequence that holds none yet must leave. */
  readonly watermark: number;
  queriedTokens: number;
  hitTokens: number;
  copiedBlocks: number;
}
