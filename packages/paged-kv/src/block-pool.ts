import { checkInteger, PagedKvError } from "./errors.js";

const MAX_INT32 = 0x7fffffff;

/** `blockCount` blocks of `blockSize` tokens; `onEvict` hears of every cached block that is handed out anew. */
export interface BlockPoolOptions {
  blockCount: number;
  blockSize: number;
  onEvict?: (block: number) => void;
}

/**
 * Hands out blocks of KV cache by number, and counts who holds them. A block is room for `blockSize` tokens in every
 * layer at once; what stands in it is a storage's matter, the pool only knows how many hold it.
 *
 * A block that nobody holds is free. Free blocks form a doubly linked list through two typed arrays, closed by a sentinel,
 * so that any block can be taken out in O(1) and nothing is allocated when blocks come and go. The list is also the order
 * of eviction:
 *
 * ```text
 *                 not cached        |  cached: content that a prompt may ask for
 *   sentinel -> 5 -> 4 -> 6 -> 7 -> | 3 -> 2 -> 1 -> sentinel
 *      allocate() takes here          longest unused ... last used
 * ```
 *
 * A freed block goes to the front when it is not cached, to the back when it is; of the blocks freed together the last
 * comes first, because the tail of a sequence is of less use to others than its head. It is the order of vLLM's
 * `FreeKVCacheBlockQueue`.
 */
export class BlockPool {
  /** Blocks in all; their ids are `0..blockCount - 1`. */
  readonly blockCount: number;
  /** Tokens that a block holds. */
  readonly blockSize: number;

  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** Holders of each block. Negative only inside `free()`: seen once in this call, so nothing is allocated to know it. */
  readonly #references: Int32Array;
  readonly #cached: Uint8Array;
  readonly #sentinel: number;
  readonly #onEvict: ((block: number) => void) | undefined;
  #freeBlocks: number;

  /** @throws PagedKvError `INVALID_ARGUMENT` when a size is not a positive integer, or slot numbers exceed 31 bits. */
  constructor(options: BlockPoolOptions) {
    const { blockCount, blockSize } = options;
    checkInteger("blockSize", blockSize, 1, MAX_INT32);
    checkInteger("blockCount", blockCount, 1, Math.floor(MAX_INT32 / blockSize));
    this.blockCount = blockCount;
    this.blockSize = blockSize;
    this.#onEvict = options.onEvict;
    this.#sentinel = blockCount;
    this.#freeBlocks = blockCount;
    this.#references = new Int32Array(blockCount);
    this.#cached = new Uint8Array(blockCount);
    this.#next = new Int32Array(blockCount + 1);
    this.#previous = new Int32Array(blockCount + 1);
    for (let id = 0; id <= blockCount; id++) {
      this.#next[id] = id === blockCount ? 0 : id + 1;
      this.#previous[id] = id === 0 ? blockCount : id - 1;
    }
  }

  /** Blocks that nobody holds, cached ones included: they are evicted when they are needed. */
  get freeBlocks(): number {
    return this.#freeBlocks;
  }

  get usedBlocks(): number {
    return this.blockCount - this.#freeBlocks;
  }

  /**
   * Takes `count` blocks, the first of the free list first, or none at all.
   * @returns their ids, or `null` when fewer than `count` are free; nothing has changed then.
   */
  allocate(count: number): Int32Array | null {
    checkInteger("count", count, 0, MAX_INT32);
    if (count > this.#freeBlocks) return null;
    const blocks = new Int32Array(count);
    this.allocateInto(blocks, 0, count);
    return blocks;
  }

  /**
   * `allocate` without an allocation: the ids go to `target[start..start + count - 1]`.
   * @returns false when fewer than `count` blocks are free; neither pool nor target has changed then.
   */
  allocateInto(target: Int32Array, start: number, count: number): boolean {
    checkInteger("start", start, 0, target.length);
    checkInteger("count", count, 0, target.length - start);
    if (count > this.#freeBlocks) return false;
    for (let i = 0; i < count; i++) {
      const id = this.#next[this.#sentinel]!;
      this.#unlink(id);
      this.#references[id] = 1;
      target[start + i] = id;
      if (this.#cached[id]) {
        this.#cached[id] = 0;
        this.#onEvict?.(id);
      }
    }
    this.#freeBlocks -= count;
    return true;
  }

  /**
   * One holder more. A cached block that is free leaves the free list and is used again.
   * @throws PagedKvError `UNKNOWN_BLOCK`; `INVALID_ARGUMENT` for a free block that is not cached, whose content is gone.
   */
  share(block: number): void {
    const references = this.#references[block];
    if (references === undefined) throw this.#unknown(block);
    if (references === 0) {
      if (!this.#cached[block]) {
        throw new PagedKvError("INVALID_ARGUMENT", `block ${block} is free and not cached; allocate a block`, block);
      }
      this.#unlink(block);
      this.#freeBlocks--;
    }
    this.#references[block] = references + 1;
  }

  /**
   * One holder less for each of `blocks[start..end - 1]`; those that nobody holds any more become free. All ids are checked
   * before any block is freed.
   * @throws PagedKvError `UNKNOWN_BLOCK` for an id that is not of this pool, `DOUBLE_FREE` for a block that is free
   * already or named twice.
   */
  free(blocks: ArrayLike<number>, start = 0, end = blocks.length): void {
    checkInteger("end", end, 0, blocks.length);
    checkInteger("start", start, 0, end);
    for (let i = start; i < end; i++) {
      const id = blocks[i]!;
      const references = this.#references[id];
      if (references === undefined || references <= 0) {
        for (let j = start; j < i; j++) this.#references[blocks[j]!]! *= -1;
        throw this.#refusal(id, references);
      }
      this.#references[id] = -references;
    }
    const sentinel = this.#sentinel;
    for (let i = start; i < end; i++) {
      const id = blocks[i]!;
      const references = -this.#references[id]! - 1;
      this.#references[id] = references;
      if (references > 0) continue;
      this.#freeBlocks++;
      if (!this.#cached[id]) this.#link(sentinel, id, this.#next[sentinel]!);
    }
    for (let i = end - 1; i >= start; i--) {
      const id = blocks[i]!;
      if (this.#references[id] === 0 && this.#cached[id]) this.#link(this.#previous[sentinel]!, id, sentinel);
    }
  }

  /** How many hold the block; 0 for a free one. */
  references(block: number): number {
    return this.#references[block] ?? 0;
  }

  /** Whether the content of the block may be asked for by others. */
  isCached(block: number): boolean {
    return this.#cached[block] === 1;
  }

  /** Marks a block that somebody holds: when it is free, its content is kept as long as possible, or not at all. */
  setCached(block: number, cached: boolean): void {
    if (!(this.#references[block]! > 0)) {
      throw new PagedKvError("INVALID_ARGUMENT", `block ${block} is not in use; mark a block while it is held`, block);
    }
    this.#cached[block] = cached ? 1 : 0;
  }

  /** Free blocks are no longer cached; without `onEvict`. */
  clearCached(): void {
    for (let id = 0; id < this.blockCount; id++) if (this.#references[id] === 0) this.#cached[id] = 0;
  }

  /**
   * Walks the whole free list and compares it with the books; for tests and idle moments, O(blockCount).
   * @throws PagedKvError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    let listed = 0;
    let cached = 0;
    let before = this.#sentinel;
    for (let id = this.#next[before]!; id !== this.#sentinel; id = this.#next[id]!) {
      if (this.#references[id] !== 0) {
        throw new PagedKvError("CORRUPT", `block ${id} is used and on the free list`, id);
      }
      if (this.#previous[id] !== before)
        throw new PagedKvError("CORRUPT", `free list is broken before block ${id}`, id);
      if (++listed > this.blockCount) throw new PagedKvError("CORRUPT", `free list has a cycle at block ${id}`, id);
      if (this.#cached[id]) cached++;
      else if (cached > 0) throw new PagedKvError("CORRUPT", `block ${id} is not cached but behind cached ones`, id);
      before = id;
    }
    if (this.#previous[this.#sentinel] !== before) {
      throw new PagedKvError("CORRUPT", `free list does not end at block ${before}`, before);
    }
    let free = 0;
    for (let id = 0; id < this.blockCount; id++) if (this.#references[id] === 0) free++;
    if (listed !== free || listed !== this.#freeBlocks) {
      throw new PagedKvError(
        "CORRUPT",
        `${listed} blocks are on the free list, ${free} are held by nobody, ${this.#freeBlocks} are counted free`,
        listed,
      );
    }
  }

  #link(before: number, id: number, after: number): void {
    this.#next[before] = id;
    this.#previous[id] = before;
    this.#next[id] = after;
    this.#previous[after] = id;
  }

  #unlink(id: number): void {
    const before = this.#previous[id]!;
    const after = this.#next[id]!;
    this.#next[before] = after;
    this.#previous[after] = before;
  }

  #refusal(id: number, references: number | undefined): PagedKvError {
    if (references === undefined) return this.#unknown(id);
    const how = references < 0 ? "named twice in one call" : "free already";
    return new PagedKvError("DOUBLE_FREE", `block ${id} is ${how}; free each block once; nothing was freed`, id);
  }

  #unknown(id: number): PagedKvError {
    return new PagedKvError(
      "UNKNOWN_BLOCK",
      `block ${String(id)} is not of this pool, whose blocks are 0..${this.blockCount - 1}; nothing has changed`,
      id,
    );
  }
}
