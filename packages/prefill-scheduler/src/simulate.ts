import { attendedTokens, type StepCost, stepMilliseconds } from "./cost-model.js";
import { checkInteger, SchedulerError } from "./errors.js";
import { type Schedulable, Scheduler } from "./scheduler.js";
import type { SchedulerOptions } from "./scheduler-options.js";
import { SimulatedBlocks } from "./simulated-blocks.js";
import { Recorder, type RequestRecord, type ServiceLevel, type SimulationReport } from "./simulation-report.js";
import type { StepPlan } from "./step-plan.js";

/** One request of a trace. Times are milliseconds from the start. */
export interface TraceRequest extends Schedulable {
  /** When it comes. */
  readonly at: number;
  /** Tokens that it generates, unless the cache holds fewer. */
  readonly outputTokens: number;
  /** When its user cancels it. Default: never. */
  readonly cancelAt?: number;
  /** Tokens at its start that it has in common with all requests of this key. Default: none. */
  readonly prefix?: { readonly key: string; readonly tokens: number };
}

export interface SimulationOptions extends Omit<SchedulerOptions, "maxTokensPerRequest"> {
  blockCount: number;
  blockSize: number;
  /** What a step takes. The scheduler is not told; it learns from the times of the steps. */
  cost: StepCost;
  /** What goodput counts. Default: every request that is not cancelled. */
  serviceLevel?: ServiceLevel;
}

/** A request of the trace in the scheduler. */
class SimulatedRequest implements Schedulable {
  readonly promptTokens: number;
  readonly priority: number | undefined;
  readonly client: string | undefined;
  readonly prefix: TraceRequest["prefix"];
  readonly outputTokens: number;
  ownBlocks = 0;
  sharedBlocks = 0;

  constructor(
    trace: TraceRequest,
    readonly record: RequestRecord,
    maxTokens: number,
  ) {
    this.promptTokens = trace.promptTokens;
    this.priority = trace.priority;
    this.client = trace.client;
    this.prefix = trace.prefix;
    // The last token is never computed, so it needs no room.
    this.outputTokens = Math.min(trace.outputTokens, maxTokens - trace.promptTokens + 1);
  }
}

interface Event {
  readonly at: number;
  readonly index: number;
  readonly isCancel: boolean;
}

/**
 * Replays a trace against a `Scheduler`, the same that an engine runs, with a formula in place of the model: for choosing
 * limits and policies without a machine to spare. Deterministic; a minute of traffic takes milliseconds.
 * @throws SchedulerError `INVALID_ARGUMENT`.
 */
export function simulate(trace: readonly TraceRequest[], options: SimulationOptions): SimulationReport {
  const { blockCount, blockSize, cost, serviceLevel, ...limits } = options;
  checkInteger("blockCount", blockCount, 1);
  checkInteger("blockSize", blockSize, 1);
  checkTrace(trace, cost);
  const simulation = new Simulation(trace, limits, new SimulatedBlocks(blockCount, blockSize), cost);
  return simulation.run().report(serviceLevel);
}

class Simulation {
  readonly #trace: readonly TraceRequest[];
  readonly #maxTokens: number;
  readonly #scheduler: Scheduler<SimulatedRequest>;
  readonly #blocks: SimulatedBlocks<SimulatedRequest>;
  readonly #cost: StepCost;
  readonly #requests: (SimulatedRequest | undefined)[] = [];
  readonly #events: readonly Event[];
  readonly #recorder = new Recorder();
  #nextEvent = 0;
  #now = 0;

  constructor(
    trace: readonly TraceRequest[],
    limits: Omit<SchedulerOptions, "maxTokensPerRequest">,
    blocks: SimulatedBlocks<SimulatedRequest>,
    cost: StepCost,
  ) {
    this.#trace = trace;
    this.#blocks = blocks;
    this.#cost = cost;
    this.#maxTokens = blocks.blockCount * blocks.blockSize;
    this.#scheduler = new Scheduler({ ...limits, maxTokensPerRequest: this.#maxTokens }, blocks);
    const comings = trace.map(({ at }, index) => ({ at, index, isCancel: false }));
    const goings = trace.map(({ cancelAt = Infinity }, index) => ({ at: cancelAt, index, isCancel: true }));
    this.#events = [...comings, ...goings.filter(({ at }) => at < Infinity)].sort((a, b) => a.at - b.at);
  }

  run(): Recorder {
    for (;;) {
      this.#happen(this.#now);
      const plan = this.#scheduler.schedule();
      if (plan.tokens > 0) this.#step(plan);
      else if (this.#nextEvent < this.#events.length) this.#now = this.#events[this.#nextEvent]!.at;
      else break;
    }
    this.#scheduler.checkIntegrity();
    return this.#recorder;
  }

  #step(plan: StepPlan<SimulatedRequest>): void {
    let attended = 0;
    for (const { start, end } of plan.chunks) attended += attendedTokens(start, end);
    const milliseconds = stepMilliseconds(this.#cost, plan.tokens, attended);
    this.#recorder.step(this.#now, milliseconds, plan, this.#scheduler);
    this.#now += milliseconds;
    // Whoever goes while the step runs is gone before its result is there.
    this.#happen(this.#now);
    this.#scheduler.complete(plan, milliseconds);
    for (const { request, end, sample } of plan.chunks) {
      if (this.#requests[request.record.index] !== request) continue;
      this.#blocks.computed(request, end);
      if (sample) this.#sample(request);
    }
  }

  #sample(request: SimulatedRequest): void {
    const { record } = request;
    this.#recorder.token(record, this.#now);
    if (record.tokens < request.outputTokens) {
      this.#scheduler.append(request, 1);
      return;
    }
    record.outcome = "completed";
    this.#end(request);
    this.#scheduler.finish(request);
  }

  /** Comings and goings until now. */
  #happen(now: number): void {
    for (; this.#nextEvent < this.#events.length; this.#nextEvent++) {
      const { at, index, isCancel } = this.#events[this.#nextEvent]!;
      if (at > now) return;
      if (isCancel) this.#cancel(index, at);
      else this.#add(index);
    }
  }

  #add(index: number): void {
    const trace = this.#trace[index]!;
    const request = new SimulatedRequest(trace, this.#recorder.add(index, trace.at), this.#maxTokens);
    try {
      this.#scheduler.add(request);
    } catch (error) {
      if (!(error instanceof SchedulerError) || error.code !== "REQUEST_TOO_LONG") throw error;
      request.record.outcome = "refused";
      return;
    }
    this.#requests[index] = request;
  }

  #cancel(index: number, at: number): void {
    const request = this.#requests[index];
    if (!request) return;
    request.record.outcome = "cancelled";
    request.record.end = at;
    this.#end(request);
    this.#scheduler.abort(request);
  }

  #end(request: SimulatedRequest): void {
    const { cachedTokens, preemptions } = this.#scheduler.progress(request);
    request.record.cachedTokens = cachedTokens;
    request.record.preemptions = preemptions;
    this.#requests[request.record.index] = undefined;
  }
}

function checkTrace(trace: readonly TraceRequest[], cost: StepCost): void {
  for (const { at, cancelAt = at, promptTokens, outputTokens, prefix } of trace) {
    checkInteger("outputTokens", outputTokens, 1);
    if (prefix) checkInteger("prefix.tokens", prefix.tokens, 0, promptTokens);
    if (!(at >= 0 && at < Infinity && cancelAt >= at)) {
      const message = `a request must come at a time of at least 0 and be cancelled later, got ${at} and ${cancelAt}`;
      throw new SchedulerError("INVALID_ARGUMENT", message, at);
    }
  }
  const { fixed, perToken, perContextToken } = cost;
  if (!(fixed >= 0 && perToken >= 0 && perContextToken >= 0 && fixed + perToken > 0)) {
    throw new SchedulerError("INVALID_ARGUMENT", "the cost of a step must have no negative term and be above 0", cost);
  }
}
