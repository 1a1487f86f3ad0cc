import { checkInteger, PagedKvError } from "./errors.js";

const FREE = 0;
const USED = 1;
/** Only inside `free()`: seen once in this call, so that a block named twice is found without allocating. */
const LEAVING = 2;

const MAX_INT32 = 0x7fffffff;

/**
 * Hands out blocks of KV cache by number. A block is room for `blockSize` tokens in every layer at once; what stands in
 * it is a storage's matter, the pool only knows who may write where.
 *
 * Free blocks form a doubly linked list through two typed arrays, closed by a sentinel, so that any block can be taken
 * out in O(1) and nothing is allocated when blocks come and go:
 *
 * ```text
 *   sentinel -> 3 -> 0 -> 7 -> sentinel        allocate() takes from the front: the block longest free
 *            <-   <-   <-   <-                 free() appends at the back, the last of its blocks first
 * ```
 *
 * The order is that of vLLM's `FreeKVCacheBlockQueue`: the front is the least recently used, and of one sequence the
 * tail is reused before the head, which is the part that others may share.
 */
export class BlockPool {
  /** Blocks in all; their ids are `0..blockCount - 1`. */
  readonly blockCount: number;
  /** Tokens that a block holds. */
  readonly blockSize: number;

  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #state: Uint8Array;
  readonly #sentinel: number;
  #freeBlocks: number;

  /** @throws PagedKvError `INVALID_ARGUMENT` when a size is not a positive integer, or slot numbers exceed 31 bits. */
  constructor(options: { blockCount: number; blockSize: number }) {
    const { blockCount, blockSize } = options;
    checkInteger("blockSize", blockSize, 1, MAX_INT32);
    checkInteger("blockCount", blockCount, 1, Math.floor(MAX_INT32 / blockSize));
    this.blockCount = blockCount;
    this.blockSize = blockSize;
    this.#sentinel = blockCount;
    this.#freeBlocks = blockCount;
    this.#state = new Uint8Array(blockCount);
    this.#next = new Int32Array(blockCount + 1);
    this.#previous = new Int32Array(blockCount + 1);
    for (let id = 0; id <= blockCount; id++) {
      this.#next[id] = id === blockCount ? 0 : id + 1;
      this.#previous[id] = id === 0 ? blockCount : id - 1;
    }
  }

  get freeBlocks(): number {
    return this.#freeBlocks;
  }

  get usedBlocks(): number {
    return this.blockCount - this.#freeBlocks;
  }

  /**
   * Takes `count` blocks, the longest free first, or none at all.
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
      this.#state[id] = USED;
      target[start + i] = id;
    }
    this.#freeBlocks -= count;
    return true;
  }

  /**
   * Gives back `blocks[start..end - 1]`, the last of them first. All ids are checked before any block is freed.
   * @throws PagedKvError `UNKNOWN_BLOCK` for an id that is not of this pool, `DOUBLE_FREE` for a block that is free
   * already or named twice.
   */
  free(blocks: ArrayLike<number>, start = 0, end = blocks.length): void {
    checkInteger("end", end, 0, blocks.length);
    checkInteger("start", start, 0, end);
    for (let i = start; i < end; i++) {
      const id = blocks[i]!;
      const state = this.#state[id];
      if (state !== USED) {
        for (let j = start; j < i; j++) this.#state[blocks[j]!] = USED;
        throw this.#refusal(id, state);
      }
      this.#state[id] = LEAVING;
    }
    for (let i = end - 1; i >= start; i--) {
      const id = blocks[i]!;
      this.#state[id] = FREE;
      this.#append(id);
    }
    this.#freeBlocks += end - start;
  }

  /** True while somebody holds the block. */
  isUsed(block: number): boolean {
    return this.#state[block] === USED;
  }

  /**
   * Walks the whole free list and compares it with the books; for tests and idle moments, O(blockCount).
   * @throws PagedKvError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    let listed = 0;
    let before = this.#sentinel;
    for (let id = this.#next[before]!; id !== this.#sentinel; id = this.#next[id]!) {
      if (this.#state[id] !== FREE) throw new PagedKvError("CORRUPT", `block ${id} is used and on the free list`, id);
      if (this.#previous[id] !== before)
        throw new PagedKvError("CORRUPT", `free list is broken before block ${id}`, id);
      if (++listed > this.blockCount) throw new PagedKvError("CORRUPT", `free list has a cycle at block ${id}`, id);
      before = id;
    }
    if (this.#previous[this.#sentinel] !== before) {
      throw new PagedKvError("CORRUPT", `free list does not end at block ${before}`, before);
    }
    let free = 0;
    for (const state of this.#state) if (state === FREE) free++;
    if (listed !== free || listed !== this.#freeBlocks) {
      throw new PagedKvError(
        "CORRUPT",
        `${listed} blocks are on the free list, ${free} are marked free, ${this.#freeBlocks} are counted free`,
        listed,
      );
    }
  }

  #append(id: number): void {
    const last = this.#previous[this.#sentinel]!;
    this.#next[last] = id;
    this.#previous[id] = last;
    this.#next[id] = this.#sentinel;
    this.#previous[this.#sentinel] = id;
  }

  #unlink(id: number): void {
    const before = this.#previous[id]!;
    const after = this.#next[id]!;
    this.#next[before] = after;
    this.#previous[after] = before;
  }

  #refusal(id: number, state: number | undefined): PagedKvError {
    if (state === undefined) {
      return new PagedKvError(
        "UNKNOWN_BLOCK",
        `block ${String(id)} is not of this pool, whose blocks are 0..${this.blockCount - 1}; nothing was freed`,
        id,
      );
    }
    const how = state === LEAVING ? "named twice in one call" : "free already";
    return new PagedKvError("DOUBLE_FREE", `block ${id} is ${how}; free each block once; nothing was freed`, id);
  }
}
