import type { Client } from "./fair-queue.js";
import type { HeapItem } from "./heap.js";

/** How far a request is. */
export interface Progress {
  readonly state: "waiting" | "running";
  readonly promptTokens: number;
  /** Prompt and tokens appended so far. */
  readonly totalTokens: number;
  /** Tokens whose K and V exist; 0 again after a preemption. */
  readonly computedTokens: number;
  /** Those of them that were there when the request was admitted last: a prefix hit. */
  readonly cachedTokens: number;
  /** How often it lost its blocks. */
  readonly preemptions: number;
}

/** One request as the scheduler knows it. */
export class Entry<R> implements Progress, HeapItem {
  state: "waiting" | "running" = "waiting";
  computedTokens = 0;
  totalTokens: number;
  cachedTokens = 0;
  preemptions = 0;
  heapIndex = -1;
  /** The plan that admitted it last. */
  admittedIn = 0;
  /** Blocks that it lacks for all its tokens; 0 while it waits. */
  owedBlocks = 0;
  /** Tokens that it holds blocks for. */
  reservedTokens = 0;
  /** Tokens that its client was charged for; computing them anew is free. */
  chargedTokens = 0;

  /**
   * @param arrival counts requests as they come.
   * @param offset what its priority is worth, in units of service: less comes first.
   * @param urgency `offset` and the service its client had when it came: less comes first.
   */
  constructor(
    readonly request: R,
    readonly promptTokens: number,
    readonly arrival: number,
    readonly client: Client<R>,
    readonly offset: number,
    readonly urgency: number,
  ) {
    this.totalTokens = promptTokens;
  }

  get remaining(): number {
    return this.totalTokens - this.computedTokens;
  }

  get isDecode(): boolean {
    return this.totalTokens - this.computedTokens === 1 && this.computedTokens >= this.promptTokens;
  }
}

interface Ranked {
  readonly urgency: number;
  readonly arrival: number;
}

/** The order in which requests are served where they compete for blocks; no two are equal. */
export function isMoreUrgent(a: Ranked, b: Ranked): boolean {
  return a.urgency < b.urgency || (a.urgency === b.urgency && a.arrival < b.arrival);
}
