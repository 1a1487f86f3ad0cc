import type { Pairs, Swaps } from "./job.js";

/** How much of everything is measured. */
export interface Workload {
  readonly alone: Pairs;
  readonly together: Pairs;
  /** Different adapters among the requests that decode together. */
  readonly adapters: number;
  readonly swap: Swaps;
}

export const FULL: Workload = {
  alone: { requests: 1, tokens: 24, rounds: 9 },
  together: { requests: 16, tokens: 12, rounds: 4 },
  adapters: 8,
  swap: { registered: 1000, large: 16, slots: 8, rounds: 1 },
};

export const QUICK: Workload = {
  alone: { requests: 1, tokens: 12, rounds: 3 },
  together: { requests: 16, tokens: 6, rounds: 2 },
  adapters: 8,
  swap: { registered: 100, large: 10, slots: 8, rounds: 1 },
};
