import { BlockPool } from "./block-pool.js";
import { checkInteger, PagedKvError } from "./errors.js";
import { type CacheEvent, PrefixCache, ROOT } from "./prefix-cache.js";
import { Sequence } from "./sequence.js";
import type { SequenceContext } from "./sequence-context.js";
import { readSnapshot, type SnapshotSource, writeSnapshot } from "./snapshot.js";
import { type Statistics, statistics } from "./statistics.js";
import type { KvStorage } from "./storage.js";

/** `blockCount` blocks of `blockSize` tokens. Without a storage the cache keeps the books only. */
export interface PagedKvOptions {
  blockCount: number;
  blockSize: number;
  storage?: KvStorage;
  /** Share of the blocks, 0 to 1, that a sequence must leave free when it takes its first ones. Default 0. */
  watermark?: number;
  /** Keep a record of what becomes findable and what no longer is; whoever turns it on calls `takeEvents`. Default false. */
  events?: boolean;
}

/**
 * A paged KV cache: one pool of blocks, many sequences with a block table each (Kwon et al., "Efficient Memory
 * Management for Large Language Model Serving with PagedAttention", 2023), and an index of full blocks by their tokens
 * and all tokens before them, so that sequences that begin alike share memory and work.
 */
export class PagedKv {
  readonly #pool: BlockPool;
  readonly #cache: PrefixCache;
  readonly #context: SequenceContext;

  /** @throws PagedKvError `INVALID_ARGUMENT` for sizes that are no positive integers or do not match the storage's. */
  constructor(options: PagedKvOptions) {
    const { blockCount, blockSize, storage, watermark = 0, events = false } = options;
    this.#pool = new BlockPool({ blockCount, blockSize, onEvict: (block) => this.#cache.evict(block) });
    this.#cache = new PrefixCache(this.#pool, events);
    if (!(watermark >= 0 && watermark < 1)) {
      const message = `watermark must be a share of the blocks, at least 0 and below 1, got ${String(watermark)}`;
      throw new PagedKvError("INVALID_ARGUMENT", message, watermark);
    }
    if (storage && storage.blockCount !== blockCount) {
      const message = `storage has ${storage.blockCount} blocks, blockCount is ${blockCount}; make them equal`;
      throw new PagedKvError("INVALID_ARGUMENT", message, storage.blockCount);
    }
    this.#context = {
      pool: this.#pool,
      cache: this.#cache,
      storage,
      sequences: new Set(),
      watermark: Math.ceil(watermark * blockCount),
      queriedTokens: 0,
      hitTokens: 0,
      copiedBlocks: 0,
    };
  }

  get blockCount(): number {
    return this.#pool.blockCount;
  }

  get blockSize(): number {
    return this.#pool.blockSize;
  }

  /** Tokens that the whole cache has room for: `blockCount * blockSize`. */
  get slotCount(): number {
    return this.#pool.blockCount * this.#pool.blockSize;
  }

  /** Blocks that no sequence holds; cached ones among them are evicted when they are needed. */
  get freeBlocks(): number {
    return this.#pool.freeBlocks;
  }

  get usedBlocks(): number {
    return this.#pool.usedBlocks;
  }

  /** Sequences created and not dropped. */
  get sequenceCount(): number {
    return this.#context.sequences.size;
  }

  /** Tokens written, over all sequences: their lengths, not the room that they hold. O(sequences). */
  get tokenCount(): number {
    let tokens = 0;
    for (const sequence of this.#context.sequences) tokens += sequence.length;
    return tokens;
  }

  /** Share of the blocks in use, 0 to 1. */
  get utilization(): number {
    return this.#pool.usedBlocks / this.#pool.blockCount;
  }

  /**
   * An empty sequence; it holds no block until `match` or `ensureCapacity`. Sequences share blocks only when their
   * `extraKeys` (the name of an adapter, a salt of a tenant; default none) are equal too.
   */
  create(options: { extraKeys?: string } = {}): Sequence {
    return new Sequence(this.#context, this.#cache.scope(options.extraKeys ?? ""));
  }

  /** Blocks that `tokens` tokens of one sequence take. */
  blocksFor(tokens: number): number {
    checkInteger("tokens", tokens, 0, Number.MAX_SAFE_INTEGER);
    return Math.ceil(tokens / this.#pool.blockSize);
  }

  /** Numbers to show and to alarm on. O(blocks held). */
  stats(): Statistics {
    return statistics(this.#context);
  }

  /**
   * What every block is doing, for somebody to look at: 0 free, 1 free and cached, 2 held by one sequence, 3 held by several.
   */
  blockMap(): Uint8Array {
    return Uint8Array.from({ length: this.#pool.blockCount }, (_, block) => {
      const references = this.#pool.references(block);
      if (references > 0) return references === 1 ? 2 : 3;
      return this.#pool.isCached(block) ? 1 : 0;
    });
  }

  /** What became findable or no longer is since the last call, in order; always empty unless `events` was set. */
  takeEvents(): CacheEvent[] {
    return this.#cache.takeEvents();
  }

  /**
   * Forgets all prefixes, as when the model's weights have changed.
   * @returns false when a sequence holds blocks; nothing has changed then.
   */
  reset(): boolean {
    if (this.#pool.usedBlocks > 0) return false;
    this.#cache.clear();
    return true;
  }

  /**
   * The full blocks of a sequence as bytes, to be kept on disk: `writeFile(path, kv.snapshot(sequence, fingerprint))`. When
   * the first bytes have been read the sequence may go on, or be dropped; the snapshot is of its tokens at that moment.
   * @param fingerprint says what the bytes mean (model, shape, type of K and V); `restore` wants the same.
   * @throws PagedKvError `NO_STORAGE`; `INVALID_ARGUMENT` for a fingerprint or extra keys of more than 65,535 bytes.
   */
  snapshot(sequence: Sequence, fingerprint: string): AsyncGenerator<Uint8Array, void, undefined> {
    return writeSnapshot(sequence, this.#requireStorage(), this.blockSize, fingerprint);
  }

  /**
   * Takes the blocks of a snapshot into the cache, for `match` to find; nobody holds them then. Blocks that are cached
   * already are not written again.
   * @returns the tokens of the prefix, or null when the cache has no room for it.
   * @throws PagedKvError `NOT_A_SNAPSHOT`, `SNAPSHOT_MISMATCH`, `SNAPSHOT_DAMAGED`, `NO_STORAGE`; no prefix has been added
   * then.
   */
  async restore(source: SnapshotSource, fingerprint: string): Promise<Int32Array | null> {
    return readSnapshot(this, source, this.#requireStorage(), fingerprint);
  }

  /**
   * Compares the pool with all block tables: each block stands in as many as it has references, and the full blocks of a
   * sequence are cached one after the other. For tests and idle moments.
   * @throws PagedKvError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    this.#pool.checkIntegrity();
    this.#cache.checkIntegrity();
    const holders = new Int32Array(this.#pool.blockCount);
    for (const sequence of this.#context.sequences) {
      if (sequence.length > sequence.capacity) {
        throw new PagedKvError("CORRUPT", `length ${sequence.length} exceeds capacity ${sequence.capacity}`, sequence);
      }
      const full = Math.floor(sequence.length / this.blockSize);
      let parent = ROOT;
      for (const [i, block] of sequence.blockTable.entries()) {
        holders[block]!++;
        if (i < full && !this.#cache.follows(block, parent)) {
          throw new PagedKvError("CORRUPT", `block ${block} is full but not cached after block ${parent}`, block);
        }
        parent = block;
      }
    }
    for (const [block, count] of holders.entries()) {
      const references = this.#pool.references(block);
      if (count !== references) {
        throw new PagedKvError(
          "CORRUPT",
          `block ${block} stands in ${count} tables and has ${references} references`,
          block,
        );
      }
    }
  }

  #requireStorage(): KvStorage {
    if (this.#context.storage) return this.#context.storage;
    throw new PagedKvError("NO_STORAGE", "a snapshot is read from a storage; pass one to PagedKv");
  }
}
