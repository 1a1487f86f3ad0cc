import type { StepRecord } from "@niwaki/qwen3-model";
import { median } from "../statistics.js";
import type { PairsReport, SwapReport } from "./job.js";
import type { Workload } from "./workload.js";

export interface AdaptersResult {
  readonly machine: string;
  readonly threads: number;
  readonly model: string;
  readonly workload: Workload;
  /** One request, adapters kept in float16 and in 8 bits. */
  readonly f16: PairsReport;
  readonly i8: PairsReport;
  readonly together: PairsReport;
  readonly swap: SwapReport;
}

/** A measured value and the most that it may be. */
interface Judged {
  readonly name: string;
  /** Milliseconds: what the value compares. */
  readonly of: number;
  readonly to: number;
  /** A ratio. */
  readonly value: number;
  readonly target: number;
  readonly met: boolean;
}

type Step = Pick<StepRecord, "started" | "ended" | "rows" | "chunks">;

/**
 * Milliseconds from the end of one decode step to the end of the next, on average over the steps that are one row of each
 * of `requests` requests.
 * @throws Error where there are fewer than two, or others between them
 */
export function decodeMilliseconds(steps: readonly Step[], requests: number): number {
  const decodes = ({ rows, chunks }: Step) => rows === requests && chunks.length === requests;
  const first = steps.findIndex(decodes);
  const last = steps.findLastIndex(decodes);
  if (first === last || !steps.slice(first, last + 1).every(decodes)) {
    throw new Error(`of ${steps.length} steps, fewer than two in a row are one token of each of ${requests} requests`);
  }
  return (steps[last]!.ended - steps[first]!.ended) / (last - first);
}

/**
 * The longest time from the end of one step to the end of the next, in milliseconds.
 * @throws Error for fewer than two steps
 */
export function longestInterval(steps: readonly Pick<Step, "ended">[]): number {
  if (steps.length < 2) throw new Error(`there is no interval between ${steps.length} steps`);
  return Math.max(...steps.slice(1).map(({ ended }, i) => ended - steps[i]!.ended));
}

/** What an adapter costs that is in no slot, in milliseconds: the median over the adapters. */
export function swapMilliseconds({ inactive, active }: SwapReport): number {
  return median(inactive.map((milliseconds, i) => milliseconds - active[i]!));
}

/** Each measured value against its target. */
export function judge({ f16, i8, together, swap, workload }: AdaptersResult): Judged[] {
  const judged = (name: string, of: number, to: number, value: number, target: number) => ({
    name,
    of,
    to,
    value,
    target,
    met: value <= target,
  });
  // Both of a pair ran within a second of each other, so that the ratios of the rounds are steadier than the times.
  const pairs = (name: string, { with: adapted, without }: PairsReport, target: number) => {
    const ratio = median(adapted.map((milliseconds, round) => milliseconds / without[round]!));
    return judged(name, median(adapted), median(without), ratio, target);
  };
  const step = median(swap.steps);
  const toStep = (name: string, milliseconds: number) => judged(name, milliseconds, step, milliseconds / step, 1);
  const { adapters } = workload;
  return [
    pairs("decode of one request, f16: with / without", f16, 1.12),
    pairs("decode of one request, i8: with / without", i8, 1.07),
    pairs(`${workload.together.requests} requests, ${adapters} adapters, f16: with / without`, together, 1.3),
    toStep("adapter into a slot / decode step", swapMilliseconds(swap)),
    toStep("another answer later meanwhile / decode step", median(swap.beside) - step),
  ];
}
