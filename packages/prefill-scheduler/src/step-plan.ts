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

/** A chunk whose object is used again. */
interface Row<R> {
  request: R;
  start: number;
  end: number;
  sample: boolean;
}

/** A plan in the making, and then the plan. Its objects can be used for another one, so that planning leaves no garbage. */
export class StepDraft<R> implements StepPlan<R> {
  number = 0;
  /** While it is made, what stands behind `#count` is of the plan before. */
  readonly chunks: Row<R>[] = [];
  readonly preempted: R[] = [];
  tokens = 0;
  /** Pairs of a row and a token that it attends to. */
  attended = 0;
  decodeRows = 0;
  decodeAttended = 0;
  readonly #maxTokens: number;
  #count = 0;

  constructor(maxTokens: number) {
    this.#maxTokens = maxTokens;
  }

  /** Rows that are left. */
  get room(): number {
    return this.#maxTokens - this.tokens;
  }

  get promptRows(): number {
    return this.tokens - this.decodeRows;
  }

  begin(number: number): this {
    this.number = number;
    return this;
  }

  add(entry: Entry<R>, tokens: number): void {
    const { request, computedTokens: start, totalTokens } = entry;
    const end = start + tokens;
    const sample = end === totalTokens;
    const row = this.chunks[this.#count];
    if (row === undefined) {
      this.chunks.push({ request, start, end, sample });
    } else {
      row.request = request;
      row.start = start;
      row.end = end;
      row.sample = sample;
    }
    this.#count++;
    this.tokens += tokens;
    this.attended += attendedTokens(start, end);
    if (!entry.isDecode) return;
    this.decodeRows++;
    this.decodeAttended += end;
  }

  /** The request lost its blocks: its rows, if it has some, are taken back. */
  preempt(entry: Entry<R>): void {
    const { request } = entry;
    this.preempted.push(request);
    const index = this.chunks.findLastIndex((chunk, i) => i < this.#count && chunk.request === request);
    if (index < 0) return;
    const [{ start, end }] = this.chunks.splice(index, 1) as [Row<R>];
    this.#count--;
    this.tokens -= end - start;
    this.attended -= attendedTokens(start, end);
    if (!entry.isDecode) return;
    this.decodeRows--;
    this.decodeAttended -= end;
  }

  finish(): StepPlan<R> {
    if (this.chunks.length > this.#count) this.chunks.length = this.#count;
    return this;
  }

  /** Empties the plan, and lets go of its requests. */
  clear(): void {
    for (const row of this.chunks) row.request = undefined as R;
    if (this.preempted.length > 0) this.preempted.length = 0;
    this.#count = 0;
    this.tokens = 0;
    this.attended = 0;
    this.decodeRows = 0;
    this.decodeAttended = 0;
  }
}
