import type { Chunk } from "./chunks.js";
import { attendedTokens } from "./cost-model.js";
import type { Entry } from "./entry.js";

/** Tokens `start` to `end - 1` of one request, run in this step. */
export interface ScheduledChunk<R> extends Chunk {
  readonly request: R;
  /** True when `end` is all the request has: the last row's logits give its next token. */
  readonly sample: boolean;
}

/** One step. By the policy, decode rows, prompt chunks or both; those admitted now come last, each group by urgency. */
export interface StepPlan<R> {
  /** Counts the plans of a scheduler from 1. */
  readonly number: number;
  readonly chunks: readonly ScheduledChunk<R>[];
  /** Rows in all: the sum of the chunks' lengths. */
  readonly tokens: number;
  /** Requests that lost their blocks to more urgent ones, and will be computed anew; none of them is in `chunks`. */
  readonly preempted: readonly R[];
}

/** A plan in the making. */
export class StepDraft<R> {
  readonly chunks: ScheduledChunk<R>[] = [];
  readonly preempted: R[] = [];
  tokens = 0;
  /** Pairs of a row and a token that it attends to. */
  attended = 0;
  decodeRows = 0;

  constructor(
    readonly number: number,
    readonly maxTokens: number,
  ) {}

  /** Rows that are left. */
  get room(): number {
    return this.maxTokens - this.tokens;
  }

  get promptRows(): number {
    return this.tokens - this.decodeRows;
  }

  add(entry: Entry<R>, tokens: number): void {
    const { request, computedTokens: start, totalTokens } = entry;
    const end = start + tokens;
    this.chunks.push({ request, start, end, sample: end === totalTokens });
    this.tokens += tokens;
    this.attended += attendedTokens(start, end);
    if (entry.isDecode) this.decodeRows++;
  }

  /** The request lost its blocks: its rows, if it has some, are taken back. */
  preempt(entry: Entry<R>): void {
    const { request } = entry;
    this.preempted.push(request);
    const index = this.chunks.findLastIndex((chunk) => chunk.request === request);
    if (index < 0) return;
    const [{ start, end }] = this.chunks.splice(index, 1) as [ScheduledChunk<R>];
    this.tokens -= end - start;
    this.attended -= attendedTokens(start, end);
    if (entry.isDecode) this.decodeRows--;
  }

  finish(): StepPlan<R> {
    return { number: this.number, chunks: this.chunks, tokens: this.tokens, preempted: this.preempted };
  }
}
