/** How many blocks there are: lets the scheduler look ahead when it admits a request. */
export interface BlockSupply {
  /** Tokens of a block. */
  readonly blockSize: number;
  readonly blockCount: number;
  /** Blocks that a `reserve` could take now, those included that a prefix cache would evict. */
  readonly freeBlocks: number;
}

/** Where the blocks come from. The scheduler asks, it never hands out blocks itself. */
export interface BlockBudget<R> {
  /** Can this request hold `tokens` tokens in all? If so its blocks are taken; if not, nothing changes. */
  reserve(request: R, tokens: number): boolean;
  /** Gives back every block of the request, also those of `match`. It may come again, from nothing. */
  release(request: R): void;
  /**
   * How many tokens at the start of the request are computed already, as a prefix cache or a fork knows; their blocks are
   * taken with it. Asked when the request is about to be admitted, with no block held; also after a preemption. At least the
   * last token is computed in any case.
   */
  match?(request: R): number;
  /**
   * With it a request is admitted only when all its tokens fit beside what the running prompts still need and the
   * watermark; without it when its first chunk fits.
   */
  readonly supply?: BlockSupply;
}
