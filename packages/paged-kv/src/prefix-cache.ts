import { BlockHash, hexadecimal } from "./block-hash.js";
import type { BlockPool } from "./block-pool.js";
import { PagedKvError } from "./errors.js";

/** The parent of a first block. */
export const ROOT = -1;

/** What every block of a sequence is hashed with beside its tokens. */
export interface HashScope {
  readonly extraKeys: string;
  readonly low: number;
  readonly high: number;
}

/**
 * A change of what the cache can find, one event per block. `hash` and `parent` are chain hashes (16 hexadecimal digits),
 * the same in every process for the same tokens, block size and extra keys; `parent` is null for a first block. One hash may
 * stand for several blocks, when sequences computed the same tokens side by side.
 */
export type CacheEvent =
  | {
      readonly type: "stored";
      readonly block: number;
      readonly hash: string;
      readonly parent: string | null;
      readonly tokens: Int32Array;
      readonly extraKeys: string;
    }
  | { readonly type: "removed"; readonly block: number; readonly hash: string }
  | { readonly type: "cleared" };

/**
 * Finds full blocks by the tokens in them and before them. The hash of a block is H(parent, tokens), the first block's
 * parent being the hash of its extra keys, so one hash stands for a whole prefix.
 *
 * ```text
 *   extra keys -> H0 = H(extra keys, tokens 0..15) -> H1 = H(H0, tokens 16..31) -> ...
 *                 id 7, parent 0                      id 9, parent 7
 * ```
 *
 * A hash only leads to candidates. What is found is exact: a block also carries the number of its prefix (`id`, never
 * used twice) and of its parent's, and it matches when its parent is the prefix found before and its token ids are equal.
 *
 * Everything stands in typed arrays, one entry per block; a bucket of the hash table is a doubly linked list of blocks.
 * Blocks with the same content may be cached twice; the latest is found first.
 */
export class PrefixCache {
  readonly #pool: BlockPool;
  /** The token ids of every block, also of one that is not full yet: row `block`, `blockSize` columns. */
  readonly #tokens: Int32Array;
  readonly #ids: Float64Array;
  readonly #parents: Float64Array;
  readonly #lows: Int32Array;
  readonly #highs: Int32Array;
  /** Of first blocks; for the others their parent's hold. */
  readonly #extraKeys: (string | undefined)[];
  readonly #buckets: Int32Array;
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #hash = new BlockHash();
  readonly #record: boolean;
  #events: CacheEvent[] = [];
  #lastId = 0;
  #size = 0;
  #evictions = 0;

  constructor(pool: BlockPool, record: boolean) {
    const { blockCount, blockSize } = pool;
    this.#pool = pool;
    this.#record = record;
    this.#tokens = new Int32Array(blockCount * blockSize);
    this.#ids = new Float64Array(blockCount);
    this.#parents = new Float64Array(blockCount);
    this.#lows = new Int32Array(blockCount);
    this.#highs = new Int32Array(blockCount);
    this.#extraKeys = new Array<string | undefined>(blockCount).fill(undefined);
    this.#buckets = new Int32Array(2 ** Math.ceil(Math.log2(2 * blockCount))).fill(-1);
    this.#next = new Int32Array(blockCount).fill(-1);
    this.#previous = new Int32Array(blockCount).fill(-1);
  }

  /** Blocks that can be found, used and free ones. */
  get size(): number {
    return this.#size;
  }

  /** Cached blocks handed out anew so far. */
  get evictions(): number {
    return this.#evictions;
  }

  /** The start of the chains of a sequence. */
  scope(extraKeys: string): HashScope {
    this.#hash.ofText(extraKeys);
    return { extraKeys, low: this.#hash.low, high: this.#hash.high };
  }

  /** Notes the token id at a slot (`block * blockSize + offset`). */
  setToken(slot: number, token: number): void {
    this.#tokens[slot] = token;
  }

  token(slot: number): number {
    return this.#tokens[slot]!;
  }

  /** Notes for block `to` the first `count` tokens of block `from`. */
  copyTokens(from: number, to: number, count: number): void {
    const { blockSize } = this.#pool;
    this.#tokens.copyWithin(to * blockSize, from * blockSize, from * blockSize + count);
  }

  /**
   * The block that holds `tokens[start..start + blockSize - 1]` after the prefix that ends with the cached block `parent`
   * (or `ROOT`).
   * @returns its id, or -1.
   */
  find(parent: number, tokens: ArrayLike<number>, start: number, scope: HashScope): number {
    this.#hashBlock(parent, tokens, start, scope);
    return this.#lookUp(parent, tokens, start, scope.extraKeys);
  }

  /** Makes a full block, whose tokens were all noted, findable after its parent, which is cached (or `ROOT`). */
  insert(block: number, parent: number, scope: HashScope): void {
    const start = block * this.#pool.blockSize;
    this.#hashBlock(parent, this.#tokens, start, scope);
    const { low, high } = this.#hash;
    const twin = this.#lookUp(parent, this.#tokens, start, scope.extraKeys);
    if (twin < 0) this.#ids[block] = ++this.#lastId;
    else this.#ids[block] = this.#ids[twin]!;
    this.#parents[block] = parent === ROOT ? 0 : this.#ids[parent]!;
    this.#lows[block] = low;
    this.#highs[block] = high;
    if (parent === ROOT) this.#extraKeys[block] = scope.extraKeys;
    const bucket = low & (this.#buckets.length - 1);
    const first = this.#buckets[bucket]!;
    this.#next[block] = first;
    this.#previous[block] = -1;
    if (first >= 0) this.#previous[first] = block;
    this.#buckets[bucket] = block;
    this.#size++;
    this.#pool.setCached(block, true);
    if (this.#record) {
      this.#events.push({
        type: "stored",
        block,
        hash: this.#hexadecimal(block),
        parent: parent === ROOT ? null : this.#hexadecimal(parent),
        tokens: this.#tokens.slice(start, start + this.#pool.blockSize),
        extraKeys: scope.extraKeys,
      });
    }
  }

  /** A block that is held is about to be written again: it can no longer be found. */
  remove(block: number): void {
    this.#pool.setCached(block, false);
    this.#unlink(block);
  }

  /** The pool has handed out a cached block anew. */
  evict(block: number): void {
    this.#evictions++;
    this.#unlink(block);
  }

  /** Nothing can be found any more; all blocks are free. */
  clear(): void {
    this.#pool.clearCached();
    this.#buckets.fill(-1);
    this.#extraKeys.fill(undefined);
    this.#size = 0;
    if (this.#record) this.#events.push({ type: "cleared" });
  }

  /** The events since the last call. */
  takeEvents(): CacheEvent[] {
    const events = this.#events;
    this.#events = [];
    return events;
  }

  /** Whether the block is cached with `parent` (or `ROOT`) before it. */
  follows(block: number, parent: number): boolean {
    return this.#pool.isCached(block) && this.#parents[block] === (parent === ROOT ? 0 : this.#ids[parent]);
  }

  /** @throws PagedKvError `CORRUPT` when the hash table and the pool differ in what is cached. */
  checkIntegrity(): void {
    let listed = 0;
    for (let bucket = 0; bucket < this.#buckets.length; bucket++) {
      let before = -1;
      for (let block = this.#buckets[bucket]!; block >= 0; block = this.#next[block]!) {
        if (!this.#pool.isCached(block) || this.#previous[block] !== before || ++listed > this.#size) {
          throw new PagedKvError("CORRUPT", `hash table is broken at block ${block}`, block);
        }
        before = block;
      }
    }
    let cached = 0;
    for (let block = 0; block < this.#pool.blockCount; block++) if (this.#pool.isCached(block)) cached++;
    if (listed !== this.#size || cached !== this.#size) {
      throw new PagedKvError(
        "CORRUPT",
        `${listed} blocks are in the hash table, ${cached} are marked cached, ${this.#size} are counted`,
        listed,
      );
    }
  }

  #hashBlock(parent: number, tokens: ArrayLike<number>, start: number, scope: HashScope): void {
    const low = parent === ROOT ? scope.low : this.#lows[parent]!;
    const high = parent === ROOT ? scope.high : this.#highs[parent]!;
    this.#hash.ofTokens(low, high, tokens, start, start + this.#pool.blockSize);
  }

  /** The latest block with the current hash that stands after `parent` and holds these tokens, or -1. */
  #lookUp(parent: number, tokens: ArrayLike<number>, start: number, extraKeys: string): number {
    const { low, high } = this.#hash;
    const parentId = parent === ROOT ? 0 : this.#ids[parent]!;
    let block = this.#buckets[low & (this.#buckets.length - 1)]!;
    for (; block >= 0; block = this.#next[block]!) {
      if (
        this.#lows[block] === low &&
        this.#highs[block] === high &&
        this.#parents[block] === parentId &&
        (parent !== ROOT || this.#extraKeys[block] === extraKeys) &&
        this.#holds(block, tokens, start)
      ) {
        return block;
      }
    }
    return -1;
  }

  #holds(block: number, tokens: ArrayLike<number>, start: number): boolean {
    const { blockSize } = this.#pool;
    const row = block * blockSize;
    for (let i = 0; i < blockSize; i++) if (this.#tokens[row + i] !== tokens[start + i]) return false;
    return true;
  }

  #unlink(block: number): void {
    const before = this.#previous[block]!;
    const after = this.#next[block]!;
    if (before >= 0) this.#next[before] = after;
    else this.#buckets[this.#lows[block]! & (this.#buckets.length - 1)] = after;
    if (after >= 0) this.#previous[after] = before;
    this.#extraKeys[block] = undefined;
    this.#size--;
    if (this.#record) this.#events.push({ type: "removed", block, hash: this.#hexadecimal(block) });
  }

  #hexadecimal(block: number): string {
    return hexadecimal(this.#lows[block]!, this.#highs[block]!);
  }
}
