import type { BlockBudget } from "./block-budget.js";
import type { Entry } from "./entry.js";

/**
 * What the scheduler knows of blocks: a `BlockBudget`, and with a supply also what running requests are owed, so that
 * newcomers do not take what half-computed prompts need.
 *
 * ```text
 *   free blocks:   | owed to running prompts | watermark | for newcomers |
 * ```
 */
export class BlockLedger<R> {
  readonly #budget: BlockBudget<R>;
  readonly #watermarkBlocks: number;
  #owedBlocks = 0;
  /** Who was refused last, and at what supply: not asked again until that has changed. */
  #refused: { entry: Entry<R>; freeBlocks: number; owedBlocks: number } | undefined;

  constructor(budget: BlockBudget<R>, watermark: number) {
    this.#budget = budget;
    this.#watermarkBlocks = Math.floor(watermark * (budget.supply?.blockCount ?? 0));
  }

  /** Tokens that all blocks hold together. */
  get tokens(): number {
    const { supply } = this.#budget;
    return supply ? supply.blockCount * supply.blockSize : Number.POSITIVE_INFINITY;
  }

  /** Blocks that running requests lack for the tokens that they have. */
  get owedBlocks(): number {
    return this.#owedBlocks;
  }

  /** Takes the blocks of tokens that are computed already. Returns how many those are. */
  match(entry: Entry<R>): number {
    const cached = this.#budget.match?.(entry.request) ?? 0;
    entry.reservedTokens = cached;
    return cached;
  }

  /** Takes the blocks of the request's first `tokens` tokens; false, and nothing changed, if they cannot be had. */
  reserve(entry: Entry<R>, tokens: number): boolean {
    if (!this.#budget.reserve(entry.request, tokens)) return false;
    if (tokens > entry.reservedTokens) entry.reservedTokens = tokens;
    return true;
  }

  /** Gives back all that the request holds and is owed. */
  release(entry: Entry<R>): void {
    this.#owedBlocks -= entry.owedBlocks;
    entry.owedBlocks = 0;
    entry.reservedTokens = 0;
    if (this.#refused?.entry === entry) this.#refused = undefined;
    this.#budget.release(entry.request);
  }

  /** Notes what a running request is owed now, after it got tokens or blocks. */
  updateOwed(entry: Entry<R>): void {
    const { supply } = this.#budget;
    if (!supply) return;
    const { totalTokens, reservedTokens, owedBlocks } = entry;
    const owed = Math.ceil(totalTokens / supply.blockSize) - Math.ceil(reservedTokens / supply.blockSize);
    entry.owedBlocks = Math.max(0, owed);
    this.#owedBlocks += entry.owedBlocks - owedBlocks;
  }

  /** Whether all tokens of a request that is not running fit beside the running ones. */
  hasRoomFor(entry: Entry<R>): boolean {
    const { supply } = this.#budget;
    if (!supply) return true;
    const { totalTokens, reservedTokens } = entry;
    const needed = Math.ceil(totalTokens / supply.blockSize) - Math.ceil(reservedTokens / supply.blockSize);
    return needed + this.#owedBlocks + this.#watermarkBlocks <= supply.freeBlocks;
  }

  /** The request does not fit now. */
  refuse(entry: Entry<R>): void {
    this.release(entry);
    const { supply } = this.#budget;
    if (supply) this.#refused = { entry, freeBlocks: supply.freeBlocks, owedBlocks: this.#owedBlocks };
  }

  /** Whether it would be refused again, by what is known. */
  isRefused(entry: Entry<R>): boolean {
    const refused = this.#refused;
    if (refused?.entry !== entry) return false;
    return refused.freeBlocks === this.#budget.supply!.freeBlocks && refused.owedBlocks === this.#owedBlocks;
  }
}
