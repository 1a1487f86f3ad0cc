import type { AdapterOptions } from "@niwaki/qwen3-model";

/** What a process of this benchmark measures; `adapters` are files of rank 16 on all seven projections. */
export type AdaptersJob =
  | (ModelJob & { readonly measure: "pairs"; readonly type: AdapterOptions["type"]; readonly workload: Pairs })
  | (ModelJob & { readonly measure: "swap"; readonly small: string; readonly workload: Swaps });

interface ModelJob {
  readonly path: string;
  readonly threads: number;
  readonly adapters: readonly string[];
}

/** Requests that decode together, in turn without adapters and with them. */
export interface Pairs {
  readonly requests: number;
  /** Decoded by each request in each round. */
  readonly tokens: number;
  readonly rounds: number;
}

/** Milliseconds of a decode step, one of each for every round. */
export interface PairsReport {
  readonly without: readonly number[];
  readonly with: readonly number[];
}

/** Requests that each name an adapter which is in no slot. */
export interface Swaps {
  /** Adapters in host memory. */
  readonly registered: number;
  /** How many of them have rank 16 on all seven projections; the others have rank 1 on one. More than there are slots. */
  readonly large: number;
  readonly slots: number;
  /** How often each of the large ones is loaded into a slot. */
  readonly rounds: number;
}

/** Milliseconds. */
export interface SwapReport {
  /** From a file into host memory, for each large adapter. */
  readonly registering: readonly number[];
  /** An answer of one token after a prompt of one, by an adapter that is in no slot, and by the same again. */
  readonly inactive: readonly number[];
  readonly active: readonly number[];
  /** A decode step of one request without an adapter, after each of these. */
  readonly steps: readonly number[];
  /** The longest time from one token to the next of such a request, for each adapter that is loaded into a slot beside it. */
  readonly beside: readonly number[];
}
