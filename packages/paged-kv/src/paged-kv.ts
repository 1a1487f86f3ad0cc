import { BlockPool } from "./block-pool.js";
import { checkInteger, PagedKvError } from "./errors.js";
import { Sequence } from "./sequence.js";
import type { KvStorage } from "./storage.js";

/** `blockCount` blocks of `blockSize` tokens. Without a storage the cache keeps the books only. */
export interface PagedKvOptions {
  blockCount: number;
  blockSize: number;
  storage?: KvStorage;
}

/**
 * A paged KV cache: one pool of blocks, many sequences with a block table each (Kwon et al., "Efficient Memory
 * Management for Large Language Model Serving with PagedAttention", 2023).
 */
export class PagedKv {
  readonly #pool: BlockPool;
  readonly #storage: KvStorage | undefined;
  readonly #sequences = new Set<Sequence>();

  /** @throws PagedKvError `INVALID_ARGUMENT` for sizes that are no positive integers or do not match the storage's. */
  constructor(options: PagedKvOptions) {
    this.#pool = new BlockPool(options);
    this.#storage = options.storage;
    const slots = this.slotCount;
    if (this.#storage && this.#storage.slotCount !== slots) {
      throw new PagedKvError(
        "INVALID_ARGUMENT",
        `storage has ${this.#storage.slotCount} slots, blockCount * blockSize is ${slots}; make them equal`,
        this.#storage.slotCount,
      );
    }
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

  get freeBlocks(): number {
    return this.#pool.freeBlocks;
  }

  get usedBlocks(): number {
    return this.#pool.usedBlocks;
  }

  /** Sequences created and not dropped. */
  get sequenceCount(): number {
    return this.#sequences.size;
  }

  /** Tokens written, over all sequences: their lengths, not the room that they hold. O(sequences). */
  get tokenCount(): number {
    let tokens = 0;
    for (const sequence of this.#sequences) tokens += sequence.length;
    return tokens;
  }

  /** Share of the blocks in use, 0 to 1. */
  get utilization(): number {
    return this.#pool.usedBlocks / this.#pool.blockCount;
  }

  /** An empty sequence; it holds no block until `ensureCapacity`. */
  create(): Sequence {
    return new Sequence(this.#pool, this.#storage, this.#sequences);
  }

  /** Blocks that `tokens` tokens of one sequence take. */
  blocksFor(tokens: number): number {
    checkInteger("tokens", tokens, 0, Number.MAX_SAFE_INTEGER);
    return Math.ceil(tokens / this.#pool.blockSize);
  }

  /**
   * Compares the pool with all block tables: every used block stands in exactly one table. For tests and idle moments.
   * @throws PagedKvError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    this.#pool.checkIntegrity();
    const seen = new Uint8Array(this.#pool.blockCount);
    let held = 0;
    for (const sequence of this.#sequences) {
      if (sequence.length > sequence.capacity) {
        throw new PagedKvError("CORRUPT", `length ${sequence.length} exceeds capacity ${sequence.capacity}`, sequence);
      }
      for (const block of sequence.blockTable) {
        if (!this.#pool.isUsed(block))
          throw new PagedKvError("CORRUPT", `block ${block} is free and in a table`, block);
        if (seen[block]) throw new PagedKvError("CORRUPT", `block ${block} stands in two tables`, block);
        seen[block] = 1;
        held++;
      }
    }
    if (held !== this.#pool.usedBlocks) {
      throw new PagedKvError("CORRUPT", `tables hold ${held} blocks, the pool counts ${this.#pool.usedBlocks}`, held);
    }
  }
}
