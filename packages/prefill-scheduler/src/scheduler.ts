import type { Chunk } from "./chunks.js";
import { checkInteger, SchedulerError } from "./errors.js";

export interface SchedulerOptions {
  /** Rows (tokens) of a step, over all requests. */
  maxTokensPerStep: number;
  /** Requests that run at once; at most `maxTokensPerStep`, so that every decode row fits every step. */
  maxSequencesPerStep: number;
  /** The most tokens of one request in one step. */
  chunkSize: number;
  /** Tokens that the cache can hold for one request when no other is there. Longer requests are refused. */
  maxTokensPerRequest: number;
}

/** What the scheduler must know of a request. The object is the caller's own, and is handed back in every plan. */
export interface Schedulable {
  readonly promptTokens: number;
}

/** Where the blocks come from. The scheduler asks, it never counts blocks itself. */
export interface BlockBudget<R> {
  /** Can this request hold `tokens` tokens in all? If so its blocks are taken; if not, nothing changes. */
  reserve(request: R, tokens: number): boolean;
  /** Gives back every block of the request. It may come again with `reserve`, from nothing. */
  release(request: R): void;
}

/** Tokens `start` to `end - 1` of one request, run in this step. */
export interface ScheduledChunk<R> extends Chunk {
  readonly request: R;
  /** True when `end` is all the request has: the last row's logits give its next token. */
  readonly sample: boolean;
}

/** One step. Decode rows come first, then prompt chunks, then requests admitted now; each group by arrival. */
export interface StepPlan<R> {
  readonly chunks: readonly ScheduledChunk<R>[];
  /** Rows in all: the sum of the chunks' lengths. */
  readonly tokens: number;
  /** Requests that lost their blocks to earlier ones, and will be computed anew; none of them is in `chunks`. */
  readonly preempted: readonly R[];
}

/** How far a request is. */
export interface Progress {
  readonly state: "waiting" | "running";
  readonly promptTokens: number;
  /** Prompt and tokens appended so far. */
  readonly totalTokens: number;
  /** Tokens whose K and V exist; 0 again after a preemption. */
  readonly computedTokens: number;
}

class Entry<R> implements Progress {
  state: "waiting" | "running" = "waiting";
  computedTokens = 0;
  totalTokens: number;

  constructor(
    readonly request: R,
    readonly promptTokens: number,
    readonly arrival: number,
  ) {
    this.totalTokens = promptTokens;
  }

  get remaining(): number {
    return this.totalTokens - this.computedTokens;
  }

  get isDecode(): boolean {
    return this.remaining === 1 && this.computedTokens >= this.promptTokens;
  }
}

/**
 * Decides which tokens of which request run in the next step. There are no phases: the computed tokens of each request
 * chase its total, and a step is as many tokens as its budget allows (chunked prefill as in Agrawal et al.,
 * "Sarathi-Serve", 2024).
 *
 * ```text
 *   arrival order:   A B C D | E F G
 *                    running | waiting        admitted at the border, preempted at the border
 * ```
 *
 * Every running request came before every waiting one, which is why nothing starves: the first always has its row, its
 * blocks (later ones are preempted for them) and, when it ends, leaves the place to the second.
 *
 * Pure and deterministic: no clock, no randomness, no knowledge of what runs the plan.
 */
export class Scheduler<R extends Schedulable> {
  readonly #options: SchedulerOptions;
  readonly #blocks: BlockBudget<R>;
  readonly #entries = new Map<R, Entry<R>>();
  /** Both by arrival, and all of `#running` before all of `#waiting`. */
  readonly #running: Entry<R>[] = [];
  readonly #waiting: Entry<R>[] = [];
  #arrivals = 0;

  /** @throws SchedulerError `INVALID_ARGUMENT` for limits below 1, or more sequences than tokens per step. */
  constructor(options: SchedulerOptions, blocks: BlockBudget<R>) {
    const { maxTokensPerStep, maxSequencesPerStep, chunkSize, maxTokensPerRequest } = options;
    checkInteger("maxTokensPerStep", maxTokensPerStep, 1);
    checkInteger("maxSequencesPerStep", maxSequencesPerStep, 1);
    checkInteger("chunkSize", chunkSize, 1);
    checkInteger("maxTokensPerRequest", maxTokensPerRequest, 1);
    if (maxSequencesPerStep > maxTokensPerStep) {
      throw new SchedulerError(
        "INVALID_ARGUMENT",
        `maxSequencesPerStep (${maxSequencesPerStep}) must be at most maxTokensPerStep (${maxTokensPerStep}): ` +
          "each running request needs a row",
        maxSequencesPerStep,
      );
    }
    this.#options = { maxTokensPerStep, maxSequencesPerStep, chunkSize, maxTokensPerRequest };
    this.#blocks = blocks;
  }

  /** Requests that hold blocks. */
  get runningCount(): number {
    return this.#running.length;
  }

  /** Requests that hold none: new or preempted. */
  get waitingCount(): number {
    return this.#waiting.length;
  }

  /**
   * Puts a request at the end of the queue.
   * @throws SchedulerError `REQUEST_TOO_LONG` when its prompt can never fit, `INVALID_ARGUMENT` when it is empty,
   * `DUPLICATE_REQUEST`.
   */
  add(request: R): void {
    const { promptTokens } = request;
    checkInteger("promptTokens", promptTokens, 1);
    this.#checkFits(request, promptTokens);
    if (this.#entries.has(request)) {
      throw new SchedulerError("DUPLICATE_REQUEST", "the request was added already; add each object once", request);
    }
    const entry = new Entry(request, promptTokens, this.#arrivals++);
    this.#entries.set(request, entry);
    this.#waiting.push(entry);
  }

  /**
   * Plans the next step and reserves its blocks. Run it, then call `complete(plan)`; asked again before that, the
   * scheduler plans the same tokens again. An empty plan means that no request has anything to compute.
   * @throws SchedulerError `OUT_OF_BLOCKS` when a request that is alone cannot get its blocks; `value` is the request:
   * abort it and go on.
   */
  schedule(): StepPlan<R> {
    let chunks: ScheduledChunk<R>[] = [];
    const preempted: R[] = [];
    let budget = this.#options.maxTokensPerStep;

    const plan = (entry: Entry<R>, tokens: number): void => {
      const start = entry.computedTokens;
      const end = start + tokens;
      chunks.push({ request: entry.request, start, end, sample: end === entry.totalTokens });
      budget -= tokens;
    };

    // Preempting takes from the end of #running, so both loops see every entry that is left exactly once.
    for (let i = 0; i < this.#running.length; i++) {
      const entry = this.#running[i]!;
      if (entry.isDecode && this.#reserve(entry, 1, preempted)) plan(entry, 1);
    }
    for (let i = 0; i < this.#running.length && budget > 0; i++) {
      const entry = this.#running[i]!;
      if (entry.isDecode || entry.remaining === 0) continue;
      const lost = preempted.length;
      const tokens = Math.min(entry.remaining, this.#options.chunkSize, budget);
      const reserved = this.#reserve(entry, tokens, preempted);
      if (preempted.length > lost) {
        // A later request may have had its decode row already.
        chunks = chunks.filter((chunk) => this.#entries.get(chunk.request)!.state === "running");
        budget = this.#options.maxTokensPerStep - countTokens(chunks);
      }
      if (reserved) plan(entry, tokens);
    }
    // Whoever was preempted just now would be admitted first, and lose its blocks again in the next step.
    while (preempted.length === 0 && budget > 0 && this.#running.length < this.#options.maxSequencesPerStep) {
      const entry = this.#waiting[0];
      if (!entry) break;
      const tokens = Math.min(entry.remaining, this.#options.chunkSize, budget);
      if (!this.#blocks.reserve(entry.request, tokens)) {
        if (this.#running.length === 0) throw outOfBlocks(entry, tokens);
        break;
      }
      this.#waiting.shift();
      this.#running.push(entry);
      entry.state = "running";
      plan(entry, tokens);
    }
    return { chunks, tokens: countTokens(chunks), preempted };
  }

  /**
   * The step ran: its tokens are computed. Requests that were aborted meanwhile are passed over.
   * @throws SchedulerError `STALE_PLAN` when the plan was completed before; nothing has changed then.
   */
  complete(plan: StepPlan<R>): void {
    for (const { request, start } of plan.chunks) {
      const entry = this.#entries.get(request);
      if (entry && (entry.state !== "running" || entry.computedTokens !== start)) {
        throw new SchedulerError(
          "STALE_PLAN",
          `the plan starts at token ${start} of a request that is at ${entry.computedTokens}; complete each plan once, ` +
            "before the next schedule()",
          request,
        );
      }
    }
    for (const { request, start, end } of plan.chunks) {
      if (this.#entries.has(request)) this.advance(request, end - start);
    }
  }

  /**
   * Counts the next `tokens` tokens of one request as computed; `complete` does it for a whole plan.
   * @throws SchedulerError `UNKNOWN_REQUEST`, `INVALID_ARGUMENT` past its total or while it waits.
   */
  advance(request: R, tokens: number): void {
    const entry = this.#entry(request);
    checkInteger("tokens", tokens, 0);
    if (entry.state === "waiting" || tokens > entry.remaining) {
      throw new SchedulerError(
        "INVALID_ARGUMENT",
        `cannot advance a ${entry.state} request by ${tokens}: ${entry.computedTokens} of ${entry.totalTokens} are computed`,
        tokens,
      );
    }
    entry.computedTokens += tokens;
  }

  /**
   * The request has `tokens` more tokens to compute: what was sampled and goes on, or was given from outside.
   * @throws SchedulerError `UNKNOWN_REQUEST`; `REQUEST_TOO_LONG` past `maxTokensPerRequest`: finish it before that.
   */
  append(request: R, tokens: number): void {
    const entry = this.#entry(request);
    checkInteger("tokens", tokens, 1);
    this.#checkFits(request, entry.totalTokens + tokens);
    entry.totalTokens += tokens;
  }

  /**
   * The request is done: its blocks are released and it is forgotten.
   * @throws SchedulerError `UNKNOWN_REQUEST`.
   */
  finish(request: R): void {
    this.#remove(this.#entry(request));
  }

  /**
   * Cancels a request at any moment, waiting or running, also while a step with it runs.
   * @returns false when the scheduler does not know it (any more); nothing has changed then.
   */
  abort(request: R): boolean {
    const entry = this.#entries.get(request);
    if (!entry) return false;
    this.#remove(entry);
    return true;
  }

  /** @throws SchedulerError `UNKNOWN_REQUEST`. */
  progress(request: R): Progress {
    const { state, promptTokens, totalTokens, computedTokens } = this.#entry(request);
    return { state, promptTokens, totalTokens, computedTokens };
  }

  /**
   * Checks the queues against each other; for tests and idle moments, O(requests).
   * @throws SchedulerError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    const queued = [...this.#running, ...this.#waiting];
    if (queued.length !== this.#entries.size) {
      throw new SchedulerError("CORRUPT", `${queued.length} queued, ${this.#entries.size} known`, queued.length);
    }
    let before = -1;
    for (const [i, entry] of queued.entries()) {
      const { request, state, arrival, computedTokens, totalTokens } = entry;
      if (this.#entries.get(request) !== entry)
        throw new SchedulerError("CORRUPT", "a queued request is unknown", request);
      if (arrival <= before) throw new SchedulerError("CORRUPT", "the queues are not in arrival order", request);
      if ((state === "running") !== i < this.#running.length) {
        throw new SchedulerError("CORRUPT", `a request marked ${state} stands in the other queue`, request);
      }
      if (computedTokens > totalTokens || (state === "waiting" && computedTokens > 0)) {
        throw new SchedulerError("CORRUPT", `${computedTokens} of ${totalTokens} computed while ${state}`, request);
      }
      before = arrival;
    }
  }

  /** Blocks for the next `tokens` tokens, at the cost of the last come, in the end of the request itself. */
  #reserve(entry: Entry<R>, tokens: number, preempted: R[]): boolean {
    while (!this.#blocks.reserve(entry.request, entry.computedTokens + tokens)) {
      if (this.#running.length === 1) throw outOfBlocks(entry, entry.computedTokens + tokens);
      const victim = this.#running.pop()!;
      this.#blocks.release(victim.request);
      victim.state = "waiting";
      victim.computedTokens = 0;
      this.#waiting.unshift(victim);
      preempted.push(victim.request);
      if (victim === entry) return false;
    }
    return true;
  }

  #remove(entry: Entry<R>): void {
    const queue = entry.state === "running" ? this.#running : this.#waiting;
    queue.splice(queue.indexOf(entry), 1);
    this.#entries.delete(entry.request);
    this.#blocks.release(entry.request);
  }

  #entry(request: R): Entry<R> {
    const entry = this.#entries.get(request);
    if (entry) return entry;
    throw new SchedulerError("UNKNOWN_REQUEST", "the request was never added, or is finished or aborted", request);
  }

  #checkFits(request: R, tokens: number): void {
    const most = this.#options.maxTokensPerRequest;
    if (tokens > most) {
      throw new SchedulerError(
        "REQUEST_TOO_LONG",
        `the request would have ${tokens} tokens, the cache holds ${most} for one request; shorten it or enlarge the cache`,
        request,
      );
    }
  }
}

function countTokens(chunks: readonly Chunk[]): number {
  let tokens = 0;
  for (const { start, end } of chunks) tokens += end - start;
  return tokens;
}

function outOfBlocks(entry: Entry<unknown>, tokens: number): SchedulerError {
  return new SchedulerError(
    "OUT_OF_BLOCKS",
    `a request that runs alone cannot get blocks for ${tokens} tokens; maxTokensPerRequest promises more than there is`,
    entry.request,
  );
}
