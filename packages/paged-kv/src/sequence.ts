import { checkInteger, PagedKvError } from "./errors.js";
import { type HashScope, ROOT } from "./prefix-cache.js";
import type { SequenceContext } from "./sequence-context.js";
import { isTokenStorage, type TokenStorage } from "./storage.js";

const FIRST_TABLE = 4;
const EMPTY = new Int32Array(0);

/**
 * One sequence's share of the cache: its block table, and how many of its tokens are written.
 *
 * ```text
 *   position      0 1 2 3 | 4 5 6 7 | 8 9 . .          block size 4
 *   block table      7    |    2    |    5
 *   slot         28 .. 31 | 8 .. 11 | 20 21 . .        slot = block * blockSize + position % blockSize
 *                  cached    cached      ^ length 10, capacity 12
 * ```
 *
 * `length` counts written tokens, `capacity` counts the room held; the two are never mixed. Full blocks are cached: a
 * sequence that starts with the same tokens holds the same blocks. Made by `PagedKv.create()`.
 */
export class Sequence {
  readonly #context: SequenceContext;
  readonly #scope: HashScope;
  readonly #tokenStorage: TokenStorage | undefined;
  #table = EMPTY;
  #view = EMPTY;
  #blockCount = 0;
  #length = 0;
  #dropped = false;
  /** Whether the block of the next token is this sequence's to write. False until `ensureCapacity` has seen to it. */
  #writable = true;

  constructor(context: SequenceContext, scope: HashScope) {
    this.#context = context;
    this.#scope = scope;
    const { storage } = context;
    if (storage && isTokenStorage(storage)) this.#tokenStorage = storage;
    context.sequences.add(this);
  }

  /** Tokens whose K and V are written, in every layer. */
  get length(): number {
    return this.#length;
  }

  /** Tokens that the blocks held have room for; at least `length`. */
  get capacity(): number {
    return this.#blockCount * this.#context.pool.blockSize;
  }

  /** What its blocks are cached under beside their tokens. */
  get extraKeys(): string {
    return this.#scope.extraKeys;
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

  /** The ids of its tokens: a copy of `length` numbers. */
  tokens(): Int32Array {
    return Int32Array.from({ length: this.#length }, (_, position) => this.#context.cache.token(this.slot(position)));
  }

  /**
   * Takes the cached blocks that begin with `tokens` (the whole prompt), as many as follow without a gap. At least one
   * token is left to compute, since its logits are wanted. A sequence that ends on a block boundary and holds no room
   * beyond it goes on from there; any other stays as it is.
   *
   * With `newTokens` it also makes room for that many tokens of the prompt beyond the hit (fewer where the prompt ends),
   * all or nothing: a sequence that holds no block yet must leave the watermark free.
   * @returns the length now, a multiple of the block size; undefined when the room cannot be had, nothing has changed then.
   */
  match(tokens: ArrayLike<number>): number;
  match(tokens: ArrayLike<number>, newTokens: number): number | undefined;
  match(tokens: ArrayLike<number>, newTokens?: number): number | undefined {
    this.#checkAlive();
    checkInteger("newTokens", newTokens ?? 0, 0, Number.MAX_SAFE_INTEGER);
    const before = this.#length;
    if (before === this.capacity) {
      if (!this.takeHits(tokens, newTokens)) return undefined;
    } else if (newTokens !== undefined && !this.ensureCapacity(Math.min(before + newTokens, tokens.length))) {
      return undefined;
    }
    this.#context.queriedTokens += Math.max(0, tokens.length - before);
    this.#context.hitTokens += this.#length - before;
    return this.#length;
  }

  /**
   * `match`, uncounted, of a sequence that ends on a block boundary and holds no room beyond it.
   * @internal
   */
  takeHits(tokens: ArrayLike<number>, newTokens?: number): boolean {
    const { pool, cache } = this.#context;
    const { blockSize } = pool;
    const start = this.#blockCount;
    const most = Math.floor((tokens.length - 1) / blockSize);
    let freeHits = 0;
    let blocks = start;
    let parent = start === 0 ? ROOT : this.#table[start - 1]!;
    for (; blocks < most; blocks++) {
      const block = cache.find(parent, tokens, blocks * blockSize, this.#scope);
      if (block < 0) break;
      if (blocks === this.#table.length) this.#growTable(most);
      // In the unused end of the table, where it means nothing until it is counted.
      this.#table[blocks] = block;
      if (pool.references(block) === 0) freeHits++;
      parent = block;
    }
    const length = blocks * blockSize;
    const room = newTokens === undefined ? length : Math.min(length + newTokens, tokens.length);
    const total = Math.max(blocks, Math.ceil(room / blockSize));
    if (newTokens !== undefined && total - blocks + freeHits > this.#available()) return false;
    if (total > this.#table.length) this.#growTable(total);
    // Before anything is allocated, so that a hit is never handed out as a new block.
    for (let i = start; i < blocks; i++) pool.share(this.#table[i]!);
    this.#allocate(blocks, total);
    this.#length = length;
    return true;
  }

  /**
   * Makes room for `tokens` tokens in all (written ones included), taking the blocks that are missing; those that are
   * cached and longest unused are evicted. If the next token stands in a block that others share, the block is copied
   * first. Call it before each step that writes.
   * @returns false when the pool cannot give all of them; nothing has changed then.
   * @throws PagedKvError `SEQUENCE_DROPPED`, `INVALID_ARGUMENT`; `NO_STORAGE` when a block must be copied and cannot.
   */
  ensureCapacity(tokens: number): boolean {
    this.#checkAlive();
    checkInteger("tokens", tokens, 0, Number.MAX_SAFE_INTEGER);
    const { pool } = this.#context;
    const total = Math.ceil(tokens / pool.blockSize);
    const missing = Math.max(0, total - this.#blockCount);
    const mustOwn = !this.#writable && tokens > this.#length;
    const copies = mustOwn && pool.references(this.#tail()) > 1 ? 1 : 0;
    if (missing + copies > 0 && missing + copies > this.#available()) return false;
    if (copies > 0) this.#copyTail();
    else if (mustOwn) this.#reopenTail();
    if (missing > 0) {
      if (total > this.#table.length) this.#growTable(total);
      this.#allocate(this.#blockCount, total);
    }
    return true;
  }

  /**
   * Counts the next tokens as written: call it with their ids when the step that wrote them has run. Blocks that became
   * full can be found by other sequences from now on.
   * @throws PagedKvError `BEYOND_CAPACITY` past the blocks held, `NOT_WRITABLE` in a block that others share; with a
   * storage of tokens, `UNWRITTEN_SLOT` when a layer of one of them was not written.
   */
  advance(tokens: ArrayLike<number>): void {
    this.#checkAlive();
    const { cache, pool } = this.#context;
    const { blockSize } = pool;
    const count = tokens.length;
    if (count === 0) return;
    if (this.#length + count > this.capacity) throw this.#beyondCapacity(this.#length + count - 1);
    if (!this.#writable) throw this.#notWritable(this.#length);
    for (let i = 0; i < count; i++) checkInteger("token", tokens[i]!, -0x80000000, 0x7fffffff);
    if (this.#tokenStorage) {
      for (let layer = 0; layer < this.#tokenStorage.layerCount; layer++) {
        for (let i = 0; i < count; i++) this.#checkWritten(layer, this.#length + i);
      }
    }
    let index = Math.floor(this.#length / blockSize);
    let offset = this.#length % blockSize;
    for (let i = 0; i < count; i++) {
      const block = this.#table[index]!;
      cache.setToken(block * blockSize + offset, tokens[i]!);
      if (++offset < blockSize) continue;
      cache.insert(block, index === 0 ? ROOT : this.#table[index - 1]!, this.#scope);
      offset = 0;
      index++;
    }
    this.#length += count;
  }

  /**
   * A second sequence with the same tokens, in the same blocks; room beyond them stays with the first. Where both go on in
   * a block that is not full, the second gets a copy of it when it asks for room. Fork between steps.
   */
  fork(): Sequence {
    this.#checkAlive();
    const { pool } = this.#context;
    const other = new Sequence(this.#context, this.#scope);
    const blocks = Math.ceil(this.#length / pool.blockSize);
    other.#growTable(blocks);
    for (let i = 0; i < blocks; i++) {
      pool.share(this.#table[i]!);
      other.#table[i] = this.#table[i]!;
    }
    other.#blockCount = blocks;
    other.#length = this.#length;
    other.#writable = this.#length % pool.blockSize === 0;
    return other;
  }

  /**
   * Keeps the first `length` tokens. Blocks that hold none of them are given back, the last first, also those that were
   * only reserved; `truncate(0)` therefore gives back everything and the sequence can start anew. Full blocks given back
   * can be found until they are evicted.
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
   * Gives everything back, as `truncate(0)`, and ends the sequence.
   * @throws PagedKvError `SEQUENCE_DROPPED` the second time.
   */
  drop(): void {
    this.#checkAlive();
    this.#release(0);
    this.#context.sequences.delete(this);
    this.#dropped = true;
  }

  /**
   * The slot of the token at `position`, which must lie within the capacity.
   * @throws PagedKvError `BEYOND_CAPACITY`.
   */
  slot(position: number): number {
    this.#checkAlive();
    checkInteger("position", position, 0, Number.MAX_SAFE_INTEGER);
    if (position >= this.capacity) throw this.#beyondCapacity(position);
    const { blockSize } = this.#context.pool;
    return this.#table[Math.floor(position / blockSize)]! * blockSize + (position % blockSize);
  }

  /**
   * Writes K and V of one token in one layer, each `width` floats of the storage. When all layers of the token are
   * written, `advance` makes it part of the sequence, and it can no longer be written.
   * @throws PagedKvError `NO_STORAGE`, `BEYOND_CAPACITY`, `INVALID_ARGUMENT`, `NOT_WRITABLE`.
   */
  write(layer: number, position: number, key: Float32Array, value: Float32Array): void {
    const storage = this.#requireTokenStorage();
    const slot = this.slot(position);
    if (!this.#isOpen(position)) throw this.#notWritable(position);
    storage.write(layer, slot, key, value);
  }

  /**
   * Copies K and V of one token in one layer into `key` and `value`.
   * @throws PagedKvError `UNWRITTEN_SLOT` when that layer of that token was not written; otherwise as `write`.
   */
  read(layer: number, position: number, key: Float32Array, value: Float32Array): void {
    const storage = this.#requireTokenStorage();
    this.#checkWritten(layer, position);
    storage.read(layer, this.slot(position), key, value);
  }

  /** Blocks that may be taken now. An empty cache takes in whatever fits, or the watermark would starve the largest. */
  #available(): number {
    const { pool, watermark } = this.#context;
    const admitted = this.#blockCount > 0 || pool.usedBlocks === 0;
    return admitted ? pool.freeBlocks : pool.freeBlocks - watermark;
  }

  /** The block of the last token, which is not full. */
  #tail(): number {
    return this.#table[Math.floor(this.#length / this.#context.pool.blockSize)]!;
  }

  #allocate(start: number, end: number): void {
    const { pool } = this.#context;
    pool.allocateInto(this.#table, start, end - start);
    this.#blockCount = end;
    if (!this.#tokenStorage) return;
    for (let i = start; i < end; i++) this.#tokenStorage.forget(this.#table[i]! * pool.blockSize, pool.blockSize);
  }

  /** Nobody else holds the tail, but it may be cached with the tokens that were cut off. */
  #reopenTail(): void {
    const tail = this.#tail();
    if (this.#context.pool.isCached(tail)) this.#context.cache.remove(tail);
    this.#forgetRest(tail);
    this.#writable = true;
  }

  #copyTail(): void {
    const { pool, cache, storage } = this.#context;
    if (!storage) throw noStorage("a block shared with a fork must be copied before it is written");
    const { blockSize } = pool;
    const index = Math.floor(this.#length / blockSize);
    const shared = this.#table[index]!;
    // A new table, because a step that is running may still read the old one.
    const table = this.#table.slice();
    pool.allocateInto(table, index, 1);
    try {
      storage.copyBlock(shared, table[index]!);
    } catch (error) {
      pool.free(table, index, index + 1);
      throw error;
    }
    cache.copyTokens(shared, table[index]!, this.#length % blockSize);
    this.#forgetRest(table[index]!);
    pool.free(this.#table, index, index + 1);
    this.#table = table;
    this.#writable = true;
    this.#context.copiedBlocks++;
  }

  #forgetRest(tail: number): void {
    const { blockSize } = this.#context.pool;
    const offset = this.#length % blockSize;
    this.#tokenStorage?.forget(tail * blockSize + offset, blockSize - offset);
  }

  #release(length: number): void {
    const { blockSize } = this.#context.pool;
    const kept = Math.ceil(length / blockSize);
    this.#context.pool.free(this.#table, kept, this.#blockCount);
    this.#blockCount = kept;
    this.#length = length;
    this.#writable = length % blockSize === 0;
  }

  #growTable(blocks: number): void {
    // A new array, never a resize: a step that is running still reads the old one.
    const table = new Int32Array(Math.max(blocks, this.#table.length * 2, FIRST_TABLE));
    table.set(this.#table);
    this.#table = table;
  }

  /** Whether K and V at this position, within the capacity, are this sequence's to write. */
  #isOpen(position: number): boolean {
    if (position < this.#length) return false;
    const { blockSize } = this.#context.pool;
    return this.#writable || Math.floor(position / blockSize) > Math.floor(this.#length / blockSize);
  }

  #checkAlive(): void {
    if (this.#dropped) {
      throw new PagedKvError("SEQUENCE_DROPPED", "the sequence was dropped; create a new one with PagedKv.create()");
    }
  }

  #checkWritten(layer: number, position: number): void {
    const slot = this.slot(position);
    const known = position < this.#length || this.#isOpen(position);
    if (!known || !this.#requireTokenStorage().isWritten(layer, slot)) {
      throw new PagedKvError(
        "UNWRITTEN_SLOT",
        `K and V of position ${position} in layer ${layer} were never written (${this.#length} tokens are)`,
        position,
      );
    }
  }

  #requireTokenStorage(): TokenStorage {
    if (this.#tokenStorage) return this.#tokenStorage;
    throw noStorage("this cache does not read or write single tokens");
  }

  #beyondCapacity(position: number): PagedKvError {
    return new PagedKvError(
      "BEYOND_CAPACITY",
      `position ${position} lies past the capacity of ${this.capacity} tokens; call ensureCapacity(${position + 1}) first`,
      position,
    );
  }

  #notWritable(position: number): PagedKvError {
    const why =
      position < this.#length
        ? `the first ${this.#length} tokens count already; truncate the sequence to write them anew`
        : `its block is shared or cached; call ensureCapacity(${position + 1}) first`;
    return new PagedKvError("NOT_WRITABLE", `position ${position} cannot be written: ${why}`, position);
  }
}

function noStorage(what: string): PagedKvError {
  return new PagedKvError("NO_STORAGE", `${what}; pass a storage that can do it to PagedKv, such as HostKvStorage`);
}
