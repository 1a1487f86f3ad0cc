import type { BlockBudget } from "./block-budget.js";
import { BlockLedger } from "./block-ledger.js";
import { attendedTokens, CostModel, type StepCost } from "./cost-model.js";
import { Entry, type Progress } from "./entry.js";
import { checkInteger, SchedulerError } from "./errors.js";
import { FairQueue } from "./fair-queue.js";
import { checkQueues } from "./integrity.js";
import { RunningList } from "./running-list.js";
import { checkOptions, type SchedulerOptions } from "./scheduler-options.js";
import { StepDraft, type StepPlan } from "./step-plan.js";

/** What the scheduler must know of a request. The object is the caller's own, and is handed back in every plan. */
export interface Schedulable {
  readonly promptTokens: number;
  /** Lower comes first, as in vLLM and with `nice`; an integer from -1000 to 1000. Default 0. */
  readonly priority?: number | undefined;
  /** Who sent it: clients get equal shares. Default: all requests are of one. */
  readonly client?: string | undefined;
}

const MOST_PRIORITY = 1000;
/**
 * What prompts get in any case, so that they advance also where decode rows alone exceed the target: this share of the time
 * that the decode rows take, and a row.
 */
const LEAST_PROMPT_SHARE = 0.25;
const LEAST_PROMPT_ROWS = 1;

/**
 * Decides which tokens of which request run in the next step. There are no phases: the computed tokens of each request
 * chase its total, and a step is as many tokens as its budget allows (chunked prefill as in Agrawal et al.,
 * "Sarathi-Serve", 2024).
 *
 * ```text
 *   by urgency:  A B C D |   clients:  a: E F   b: G          urgency = priority, then the service its client had before
 *                running |   waiting, least served client first
 * ```
 *
 * When blocks run out, the least urgent running request gives its own up. Nothing starves: the most urgent running request
 * always has its blocks and moves (with each policy, after finitely many steps), and as service is given every waiting request
 * becomes the most urgent at some time.
 *
 * Pure and deterministic: no clock, no randomness, no knowledge of what runs the plan.
 */
export class Scheduler<R extends Schedulable> {
  readonly #options: Required<SchedulerOptions>;
  readonly #blocks: BlockLedger<R>;
  readonly #entries = new Map<R, Entry<R>>();
  readonly #running = new RunningList<R>();
  readonly #waiting = new FairQueue<R>();
  readonly #costs = new CostModel();
  /** Plans to be used again. */
  readonly #spare: StepDraft<R>[] = [];
  #arrivals = 0;
  #plans = 0;
  #admittedSinceDecode = 0;

  /** @throws SchedulerError `INVALID_ARGUMENT` for limits below 1, or more sequences than tokens per step. */
  constructor(options: SchedulerOptions, blocks: BlockBudget<R>) {
    this.#options = checkOptions(options);
    this.#blocks = new BlockLedger(blocks, this.#options.watermark);
  }

  /** Requests that hold blocks. */
  get runningCount(): number {
    return this.#running.length;
  }

  /** Requests that hold none: new or preempted. */
  get waitingCount(): number {
    return this.#waiting.size;
  }

  /** What a step costs, as learned from the times of those that ran; null before the first. */
  get stepCost(): StepCost | null {
    return this.#costs.cost;
  }

  /**
   * Queues a request.
   * @throws SchedulerError `REQUEST_TOO_LONG` when its prompt can never fit, `INVALID_ARGUMENT` when it is empty or its
   * priority is out of range, `DUPLICATE_REQUEST`.
   */
  add(request: R): void {
    const { promptTokens, priority = 0, client } = request;
    checkInteger("promptTokens", promptTokens, 1);
    checkInteger("priority", priority, -MOST_PRIORITY, MOST_PRIORITY);
    this.#checkFits(request, promptTokens);
    if (this.#entries.has(request)) {
      throw new SchedulerError("DUPLICATE_REQUEST", "the request was added already; add each object once", request);
    }
    const from = this.#waiting.enter(client);
    const offset = priority * this.#options.agingTokens;
    const entry = new Entry(request, promptTokens, this.#arrivals++, from, offset, offset + from.service);
    this.#entries.set(request, entry);
    this.#waiting.add(entry);
  }

  /**
   * Plans the next step and reserves its blocks. Run it and call `complete(plan)`; asked again before that, the scheduler
   * plans the same tokens again. An empty plan means that no request has anything to compute.
   * @throws SchedulerError `OUT_OF_BLOCKS` when a request that is alone cannot get its blocks; `value` is the request:
   * abort it and go on.
   */
  schedule(): StepPlan<R> {
    const draft = (this.#spare.pop() ?? new StepDraft<R>(this.#options.maxTokensPerStep)).begin(++this.#plans);
    if (this.#options.policy === "prefill-first") {
      this.#planPrompts(draft);
      const mayAdmit = this.#admittedSinceDecode < this.#options.maxSequencesPerStep;
      if (mayAdmit) this.#admit(draft);
      if (draft.tokens === 0) this.#planDecodes(draft);
      if (draft.tokens === 0 && !mayAdmit) this.#admit(draft);
    } else {
      this.#planDecodes(draft);
      if (this.#options.policy === "interleaved" || draft.tokens === 0) {
        this.#planPrompts(draft);
        this.#admit(draft);
      }
    }
    return draft.finish();
  }

  /**
   * Decode steps that may follow the plan's own at once, before anything is planned anew: `most`, and their blocks are
   * reserved; count what they compute with `append` and `advance`. None while a request waits or has no row in the plan, none
   * behind a prompt's rows, and none without the blocks for all.
   * @throws SchedulerError `INVALID_ARGUMENT` for a `most` below 0.
   */
  following(plan: StepPlan<R>, most: number): number {
    checkInteger("most", most, 0);
    const { chunks } = plan;
    if (most === 0 || this.#waiting.size > 0 || chunks.length !== this.#running.length) return 0;
    if (!chunks.every(({ start, end, sample }) => sample && end - start === 1)) return 0;
    for (const { request, end } of chunks) {
      if (!this.#blocks.reserve(this.#entry(request), end + most)) return 0;
    }
    return most;
  }

  /**
   * The step ran: its tokens are computed. Requests that were aborted or preempted since it was planned are passed over.
   * Where several steps are under way at once, call it as soon as the step is handed over: `schedule()` then plans what does
   * not depend on its result, and `observe` takes the time when it has ended.
   * @param milliseconds how long it took, if that is known by now.
   * @throws SchedulerError `STALE_PLAN` when the plan was completed before; nothing has changed then.
   */
  complete(plan: StepPlan<R>, milliseconds?: number): void {
    for (const { request, start } of plan.chunks) {
      const entry = this.#planned(plan, request);
      if (entry && entry.computedTokens !== start) {
        throw new SchedulerError(
          "STALE_PLAN",
          `the plan starts at token ${start} of a request that is at ${entry.computedTokens}; complete each plan once`,
          request,
        );
      }
    }
    if (milliseconds !== undefined) this.observe(plan, milliseconds);
    for (const { request, end } of plan.chunks) {
      const entry = this.#planned(plan, request);
      if (entry) entry.computedTokens = end;
    }
  }

  /**
   * A step with this plan took so long, by itself; `targetMilliseconds` is kept by what is learned from it.
   * @throws SchedulerError `INVALID_ARGUMENT` for a time that is negative or not finite.
   */
  observe(plan: StepPlan<R>, milliseconds: number): void {
    if (!(milliseconds >= 0 && milliseconds < Infinity)) {
      const message = `milliseconds must be finite and at least 0, got ${String(milliseconds)}`;
      throw new SchedulerError("INVALID_ARGUMENT", message, milliseconds);
    }
    if (plan.tokens === 0) return;
    let attended = 0;
    for (const { start, end } of plan.chunks) attended += attendedTokens(start, end);
    this.#costs.observe(plan.tokens, attended, milliseconds);
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
    this.#waiting.charge(entry, entry.computedTokens);
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
    if (entry.state === "running") this.#blocks.updateOwed(entry);
  }

  /**
   * The last `tokens` appended tokens are not there, or not yet: a step was prepared for them before they were known.
   * @throws SchedulerError `UNKNOWN_REQUEST`; `INVALID_ARGUMENT` for tokens that are computed or of the prompt.
   */
  retract(request: R, tokens: number): void {
    const entry = this.#entry(request);
    checkInteger("tokens", tokens, 1);
    const { totalTokens, computedTokens, promptTokens } = entry;
    if (totalTokens - tokens < Math.max(computedTokens, promptTokens)) {
      throw new SchedulerError(
        "INVALID_ARGUMENT",
        `cannot retract ${tokens} of ${totalTokens} tokens: ${promptTokens} are the prompt, ${computedTokens} are computed`,
        tokens,
      );
    }
    entry.totalTokens -= tokens;
    if (entry.state === "running") this.#blocks.updateOwed(entry);
  }

  /**
   * Nobody looks at the plan any more: its objects are those of a plan to come. With it planning leaves no garbage.
   * @throws SchedulerError `INVALID_ARGUMENT` for a plan that is recycled already, or was not made by `schedule()`.
   */
  recycle(plan: StepPlan<R>): void {
    if (!(plan instanceof StepDraft) || this.#spare.includes(plan)) {
      throw new SchedulerError(
        "INVALID_ARGUMENT",
        "the plan is not one of schedule(); recycle each of them once",
        plan,
      );
    }
    plan.clear();
    this.#spare.push(plan);
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
    const { state, promptTokens, totalTokens, computedTokens, cachedTokens, preemptions } = this.#entry(request);
    return { state, promptTokens, totalTokens, computedTokens, cachedTokens, preemptions };
  }

  /**
   * Checks the queues against each other; for tests and idle moments, O(requests).
   * @throws SchedulerError `CORRUPT` at the first difference.
   */
  checkIntegrity(): void {
    checkQueues(this.#entries, this.#running, this.#waiting, this.#blocks);
  }

  #planDecodes(draft: StepDraft<R>): void {
    this.#admittedSinceDecode = 0;
    // Preempting takes from the end of #running, so this and the next loop see every entry that is left exactly once.
    for (let i = 0; i < this.#running.length; i++) {
      const entry = this.#running.at(i);
      if (entry.isDecode && this.#reserve(entry, 1, draft)) this.#plan(entry, 1, draft);
    }
  }

  #planPrompts(draft: StepDraft<R>): void {
    for (let i = 0; i < this.#running.length; i++) {
      const entry = this.#running.at(i);
      if (entry.isDecode || entry.remaining === 0) continue;
      const tokens = this.#chunkLength(entry, draft);
      if (tokens === 0) return;
      if (this.#reserve(entry, tokens, draft)) this.#plan(entry, tokens, draft);
    }
  }

  #admit(draft: StepDraft<R>): void {
    // Whoever was preempted just now would be admitted first, and lose its blocks again in the next step.
    while (draft.preempted.length === 0 && this.#running.length < this.#options.maxSequencesPerStep) {
      const entry = this.#waiting.first;
      if (!entry || this.#chunkLength(entry, draft) === 0) return;
      const alone = this.#running.length === 0;
      if (!alone && this.#blocks.isRefused(entry)) return;
      entry.computedTokens = Math.min(this.#blocks.match(entry), entry.totalTokens - 1);
      // Less than before: behind a hit there is less to compute, and each row of it takes longer.
      const tokens = this.#chunkLength(entry, draft);
      const needed = entry.computedTokens + tokens;
      const hasTime = tokens > 0;
      if (!hasTime || !(alone || this.#blocks.hasRoomFor(entry)) || !this.#blocks.reserve(entry, needed)) {
        entry.computedTokens = 0;
        if (hasTime) this.#blocks.refuse(entry);
        else this.#blocks.release(entry);
        if (alone) throw outOfBlocks(entry.request, needed);
        return;
      }
      this.#waiting.remove(entry);
      this.#running.add(entry);
      this.#blocks.updateOwed(entry);
      this.#admittedSinceDecode++;
      entry.state = "running";
      entry.admittedIn = draft.number;
      entry.cachedTokens = entry.computedTokens;
      entry.chargedTokens = Math.max(entry.chargedTokens, entry.cachedTokens);
      this.#plan(entry, tokens, draft);
    }
  }

  #plan(entry: Entry<R>, tokens: number, draft: StepDraft<R>): void {
    draft.add(entry, tokens);
    this.#waiting.charge(entry, entry.computedTokens + tokens);
  }

  /** Tokens of a prompt that this step has room and time for. */
  #chunkLength(entry: Entry<R>, draft: StepDraft<R>): number {
    const most = Math.min(entry.remaining, this.#options.chunkSize, draft.room);
    const { targetMilliseconds } = this.#options;
    if (draft.decodeRows === 0 || targetMilliseconds === Infinity) return most;
    const { tokens, attended } = draft;
    const decodes = this.#costs.milliseconds(draft.decodeRows, draft.decodeAttended);
    const milliseconds = Math.max(targetMilliseconds, (1 + LEAST_PROMPT_SHARE) * decodes);
    const within = this.#costs.rowsWithin(milliseconds, tokens, attended, entry.computedTokens, most);
    return Math.max(within, Math.min(most, LEAST_PROMPT_ROWS - draft.promptRows), 0);
  }

  /** Blocks for the next `tokens` tokens, at the cost of the least urgent, in the end of the request itself. */
  #reserve(entry: Entry<R>, tokens: number, draft: StepDraft<R>): boolean {
    const needed = entry.computedTokens + tokens;
    while (!this.#blocks.reserve(entry, needed)) {
      if (this.#running.length === 1) throw outOfBlocks(entry.request, needed);
      const victim = this.#running.removeLast();
      draft.preempt(victim);
      this.#blocks.release(victim);
      victim.state = "waiting";
      victim.computedTokens = 0;
      victim.preemptions++;
      this.#waiting.add(victim);
      if (victim === entry) return false;
    }
    this.#blocks.updateOwed(entry);
    return true;
  }

  #remove(entry: Entry<R>): void {
    if (entry.state === "running") this.#running.remove(entry);
    else this.#waiting.remove(entry);
    this.#waiting.leave(entry.client);
    this.#entries.delete(entry.request);
    this.#blocks.release(entry);
  }

  #entry(request: R): Entry<R> {
    const entry = this.#entries.get(request);
    if (entry) return entry;
    throw new SchedulerError("UNKNOWN_REQUEST", "the request was never added, or is finished or aborted", request);
  }

  /** The request, if it is as it was when the plan was made: not aborted, not preempted since. */
  #planned(plan: StepPlan<R>, request: R): Entry<R> | undefined {
    const entry = this.#entries.get(request);
    return entry?.state === "running" && entry.admittedIn <= plan.number ? entry : undefined;
  }

  #checkFits(request: R, tokens: number): void {
    const most = Math.min(this.#options.maxTokensPerRequest, this.#blocks.tokens);
    if (tokens > most) {
      throw new SchedulerError(
        "REQUEST_TOO_LONG",
        `the request would have ${tokens} tokens, the cache holds ${most} for one request; shorten it or enlarge the cache`,
        request,
      );
    }
  }
}

function outOfBlocks(request: unknown, tokens: number): SchedulerError {
  return new SchedulerError(
    "OUT_OF_BLOCKS",
    `a request that runs alone cannot get blocks for ${tokens} tokens; maxTokensPerRequest promises more than there is`,
    request,
  );
}
