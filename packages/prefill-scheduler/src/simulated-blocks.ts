import type { BlockBudget, BlockSupply } from "./block-budget.js";

/** A request as the blocks of the simulation see it. */
export interface BlockHolder {
  /** Tokens at its start that all requests with the same key share. */
  readonly prefix: { readonly key: string; readonly tokens: number } | undefined;
  readonly promptTokens: number;
  /** Blocks of its own. */
  ownBlocks: number;
  /** Blocks of the prefix, its first ones, that it holds together with others. */
  sharedBlocks: number;
}

interface Prefix {
  /** Full blocks of it that are computed. */
  blocks: number;
  holders: number;
}

/**
 * A pool that counts blocks, and keeps shared prefixes until their blocks are needed: the longest unused goes first, as a
 * whole. What a real cache such as `@niwaki/paged-kv` does, without the tokens.
 */
export class SimulatedBlocks<R extends BlockHolder> implements BlockBudget<R>, BlockSupply {
  /** Insertion order is the order of last use. */
  readonly #prefixes = new Map<string, Prefix>();
  #unused: number;
  /** Blocks of prefixes that nobody holds. */
  #evictable = 0;

  constructor(
    readonly blockCount: number,
    readonly blockSize: number,
  ) {
    this.#unused = blockCount;
  }

  get supply(): BlockSupply {
    return this;
  }

  get freeBlocks(): number {
    return this.#unused + this.#evictable;
  }

  match(request: R): number {
    const prefix = request.prefix && this.#prefixes.get(request.prefix.key);
    if (!prefix) return 0;
    const blocks = Math.min(prefix.blocks, this.#fullBlocks(request, request.promptTokens - 1));
    if (blocks > 0) this.#hold(request, prefix, blocks);
    return blocks * this.blockSize;
  }

  reserve(request: R, tokens: number): boolean {
    const missing = Math.ceil(tokens / this.blockSize) - request.sharedBlocks - request.ownBlocks;
    if (missing > this.freeBlocks) return false;
    if (missing <= 0) return true;
    for (const [key, prefix] of this.#prefixes) {
      if (this.#unused >= missing) break;
      if (prefix.holders > 0) continue;
      this.#prefixes.delete(key);
      this.#evictable -= prefix.blocks;
      this.#unused += prefix.blocks;
    }
    this.#unused -= missing;
    request.ownBlocks += missing;
    return true;
  }

  release(request: R): void {
    this.#unused += request.ownBlocks;
    request.ownBlocks = 0;
    if (request.sharedBlocks === 0) return;
    request.sharedBlocks = 0;
    const { key } = request.prefix!;
    const prefix = this.#prefixes.get(key)!;
    if (--prefix.holders > 0) return;
    this.#evictable += prefix.blocks;
    this.#prefixes.delete(key);
    this.#prefixes.set(key, prefix);
  }

  /** The request has computed its first `tokens` tokens: others find the full blocks of its prefix among them. */
  computed(request: R, tokens: number): void {
    if (!request.prefix) return;
    const blocks = this.#fullBlocks(request, tokens);
    const { key } = request.prefix;
    const prefix = this.#prefixes.get(key) ?? { blocks: 0, holders: 0 };
    if (blocks <= prefix.blocks) return;
    this.#prefixes.set(key, prefix);
    // Two that compute the same prefix side by side: the second keeps what it has, until it is longer.
    this.#unused += prefix.blocks - request.sharedBlocks;
    request.ownBlocks -= blocks - request.sharedBlocks;
    if (request.sharedBlocks === 0) this.#hold(request, prefix, blocks);
    else request.sharedBlocks = blocks;
    prefix.blocks = blocks;
  }

  #hold(request: R, prefix: Prefix, blocks: number): void {
    if (prefix.holders++ === 0) this.#evictable -= prefix.blocks;
    request.sharedBlocks = blocks;
  }

  #fullBlocks(request: R, tokens: number): number {
    return Math.floor(Math.min(tokens, request.prefix!.tokens) / this.blockSize);
  }
}
