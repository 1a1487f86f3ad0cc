import type { BlockPool } from "./block-pool.js";
import { checkInteger, PagedKvError } from "./errors.js";
import type { KvStorage } from "./storage.js";

const FIRST_TABLE = 4;
const EMPTY = new Int32Array(0);

/**
 * One sequence's share of the cache: its block table, and how many of its tokens are written.
 *
 * ```text
 *   position      0 1 2 3 | 4 5 6 7 | 8 9 . .          block size 4
 *   block table      7    |    2    |    5
 *   slot         28 .. 31 | 8 .. 11 | 20 21 . .        slot = block * blockSize + position % blockSize
 *                                        ^ length 10, capacity 12
 * ```
 *
 * `length` counts written tokens, `capacity` counts the room held; the two are never mixed.
 * Made by `PagedKv.create()`.
 */
export class Sequence {
  readonly #pool: BlockPool;
  readonly #storage: KvStorage | undefined;
  readonly #owners: Set<Sequence>;
  #table = EMPTY;
  #view = EMPTY;
  #blockCount = 0;
  #length = 0;

  constructor(pool: BlockPool, storage: KvStorage | undefined, owners: Set<Sequence>) {
    this.#pool = pool;
    this.#storage = storage;
    this.#owners = owners;
    owners.add(this);
  }

  /** Tokens whose K and V are written, in every layer. */
  get length(): number {
    return this.#length;
  }

  /** Tokens that the blocks held have room for; at least `length`. */
  get capacity(): number {
    return this.#blockCount * this.#pool.blockSize;
  }

  /**
   * The blocks held, in the order of the tokens: a view, not a copy. It stays as it is while a step reads it; after the
   * sequence grew or shrank, ask again.
   */
  get blockTable(): Int32Array {
    if (this.#view.length !== this.#blockCount || this.#view.buffer !== this.#table.buffer) {
      this.#view = this.#table.subarray(0, this.#blockCount);
    }
    return this.#view;
  }

  /**
   * Makes room for `tokens` tokens in all (written ones included), taking the blocks that are missing.
   * @returns false when the pool cannot give all of them; nothing has changed then.
   * @throws PagedKvError `SEQUENCE_DROPPED`, `INVALID_ARGUMENT`.
   */
  ensureCapacity(tokens: number): boolean {
    this.#checkAlive();
    checkInteger("tokens", tokens, 0, Number.MAX_SAFE_INTEGER);
    const blocks = Math.ceil(tokens / this.#pool.blockSize);
    const missing = blocks - this.#blockCount;
    if (missing <= 0) return true;
    if (missing > this.#pool.freeBlocks) return false;
    if (blocks > this.#table.length) this.#growTable(blocks);
    this.#pool.allocateInto(this.#table, this.#blockCount, missing);
    this.#blockCount = blocks;
    return true;
  }

  /**
   * Counts the next `tokens` tokens as written: call it when the step that wrote them has run.
   * @throws PagedKvError `BEYOND_CAPACITY` past the blocks held; with a storage, `UNWRITTEN_SLOT` when a layer of one
   * of them was not written.
   */
  advance(tokens: number): void {
    this.#checkAlive();
    checkInteger("tokens", tokens, 0, Number.MAX_SAFE_INTEGER);
    const length = this.#length + tokens;
    if (length > this.capacity) throw this.#beyondCapacity(length - 1);
    if (this.#storage) {
      for (let layer = 0; layer < this.#storage.layerCount; layer++) {
        for (let position = this.#length; position < length; position++) this.#checkWritten(layer, position);
      }
    }
    this.#length = length;
  }

  /**
   * Keeps the first `length` tokens. Blocks that hold none of them are given back, the last first, also those that were
   * only reserved; `truncate(0)` therefore gives back everything and the sequence can start anew.
   * @throws PagedKvError `BEYOND_LENGTH` when fewer tokens than `length` are written.
   */
  truncate(length: number): void {
    this.#checkAlive();
    checkInteger("length", length, 0, Number.MAX_SAFE_INTEGER);
    if (length > this.#length) {
      throw new PagedKvError(
        "BEYOND_LENGTH",
        `cannot truncate to ${length} tokens, the sequence has ${this.#length}; use ensureCapacity to make room`,
        length,
      );
    }
    this.#release(length);
  }

  /**
   * Gives everything back and ends the sequence.
   * @throws PagedKvError `SEQUENCE_DROPPED` the second time.
   */
  drop(): void {
    this.#checkAlive();
    this.#release(0);
    this.#owners.delete(this);
  }

  /**
   * The slot of the token at `position`, which must lie within the capacity.
   * @throws PagedKvError `BEYOND_CAPACITY`.
   */
  slot(position: number): number {
    this.#checkAlive();
    checkInteger("position", position, 0, Number.MAX_SAFE_INTEGER);
    if (position >= this.capacity) throw this.#beyondCapacity(position);
    const { blockSize } = this.#pool;
    return this.#table[Math.floor(position / blockSize)]! * blockSize + (position % blockSize);
  }

  /**
   * Writes K and V of one token in one layer, each `width` floats of the storage. When all layers of the token are
   * written, `advance(1)` makes it part of the sequence.
   * @throws PagedKvError `NO_STORAGE`, `BEYOND_CAPACITY`, `INVALID_ARGUMENT`.
   */
  write(layer: number, position: number, key: Float32Array, value: Float32Array): void {
    this.#requireStorage().write(layer, this.slot(position), key, value);
  }

  /**
   * Copies K and V of one token in one layer into `key` and `value`.
   * @throws PagedKvError `UNWRITTEN_SLOT` when that layer of that token was not written; otherwise as `write`.
   */
  read(layer: number, position: number, key: Float32Array, value: Float32Array): void {
    const storage = this.#requireStorage();
    this.#checkWritten(layer, position);
    storage.read(layer, this.slot(position), key, value);
  }

  #release(length: number): void {
    const { blockSize } = this.#pool;
    const kept = Math.ceil(length / blockSize);
    if (this.#storage) {
      // Slots past the new end of the last kept block, then whole blocks.
      const rest = kept * blockSize - length;
      if (rest > 0) this.#storage.forget(this.#table[kept - 1]! * blockSize + blockSize - rest, rest);
      for (let i = kept; i < this.#blockCount; i++) this.#storage.forget(this.#table[i]! * blockSize, blockSize);
    }
    this.#pool.free(this.#table, kept, this.#blockCount);
    this.#blockCount = kept;
    this.#length = length;
  }

  #growTable(blocks: number): void {
    // A new array, never a resize: a step that is running still reads the old one.
    const table = new Int32Array(Math.max(blocks, this.#table.length * 2, FIRST_TABLE));
    table.set(this.#table);
    this.#table = table;
  }

  #checkAlive(): void {
    if (!this.#owners.has(this)) {
      throw new PagedKvError("SEQUENCE_DROPPED", "the sequence was dropped; create a new one with PagedKv.create()");
    }
  }

  #checkWritten(layer: number, position: number): void {
    if (!this.#requireStorage().isWritten(layer, this.slot(position))) {
      throw new PagedKvError(
        "UNWRITTEN_SLOT",
        `K and V of position ${position} in layer ${layer} were never written (${this.#length} tokens are)`,
        position,
      );
    }
  }

  #requireStorage(): KvStorage {
    if (this.#storage) return this.#storage;
    throw new PagedKvError(
      "NO_STORAGE",
      "this cache only keeps the books; pass a storage to PagedKv to read and write",
    );
  }

  #beyondCapacity(position: number): PagedKvError {
    return new PagedKvError(
      "BEYOND_CAPACITY",
      `position ${position} lies past the capacity of ${this.capacity} tokens; call ensureCapacity(${position + 1}) first`,
      position,
    );
  }
}
