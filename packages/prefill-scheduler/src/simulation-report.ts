import type { StepPlan } from "./step-plan.js";

/** What a request must keep for goodput to count it, in milliseconds. */
export interface ServiceLevel {
  readonly timeToFirstToken: number;
  /** Mean over the tokens of the request. */
  readonly timeBetweenTokens: number;
}

/** Milliseconds; all 0 when there is nothing to count. */
export interface Percentiles {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** What became of one request. Times are milliseconds from the start. */
export interface RequestRecord {
  /** Its place in the trace. */
  readonly index: number;
  readonly at: number;
  outcome: "completed" | "cancelled" | "refused" | "unfinished";
  /** When it had its first token; NaN if it had none. */
  firstToken: number;
  /** When it had its last token, or was cancelled. */
  end: number;
  /** Tokens that it generated. */
  tokens: number;
  cachedTokens: number;
  preemptions: number;
}

/** One step of the timeline. */
export interface StepRecord {
  /** Milliseconds from the start. */
  readonly at: number;
  readonly milliseconds: number;
  readonly decodeRows: number;
  readonly promptRows: number;
  readonly running: number;
  readonly waiting: number;
  readonly preempted: number;
}

export interface SimulationReport {
  readonly completed: number;
  readonly cancelled: number;
  /** Requests that could never fit. */
  readonly refused: number;
  /** Milliseconds until nothing was left to do. */
  readonly duration: number;
  /** From the coming of a request to its first token. */
  readonly timeToFirstToken: Percentiles;
  /** Between a token and the next of the same request, over all tokens of all requests. */
  readonly timeBetweenTokens: Percentiles;
  /** Generated tokens per second. */
  readonly throughput: number;
  /** Completed requests per second that kept the service level. */
  readonly goodput: number;
  readonly preemptions: number;
  readonly requests: readonly RequestRecord[];
  readonly steps: readonly StepRecord[];
}

/** Takes notes while a simulation runs. */
export class Recorder {
  readonly #requests: RequestRecord[] = [];
  readonly #steps: StepRecord[] = [];
  readonly #gaps: number[] = [];

  add(index: number, at: number): RequestRecord {
    const record: RequestRecord = {
      index,
      at,
      outcome: "unfinished",
      firstToken: Number.NaN,
      end: at,
      tokens: 0,
      cachedTokens: 0,
      preemptions: 0,
    };
    this.#requests.push(record);
    return record;
  }

  token(record: RequestRecord, now: number): void {
    if (record.tokens === 0) record.firstToken = now;
    else this.#gaps.push(now - record.end);
    record.end = now;
    record.tokens++;
  }

  step(
    at: number,
    milliseconds: number,
    plan: StepPlan<{ readonly promptTokens: number }>,
    queues: { readonly runningCount: number; readonly waitingCount: number },
  ): void {
    let decodeRows = 0;
    for (const { request, start, end } of plan.chunks) {
      if (end - start === 1 && start >= request.promptTokens) decodeRows++;
    }
    this.#steps.push({
      at,
      milliseconds,
      decodeRows,
      promptRows: plan.tokens - decodeRows,
      running: queues.runningCount,
      waiting: queues.waitingCount,
      preempted: plan.preempted.length,
    });
  }

  report(level: ServiceLevel = { timeToFirstToken: Infinity, timeBetweenTokens: Infinity }): SimulationReport {
    const requests = this.#requests;
    const steps = this.#steps;
    const last = steps.at(-1);
    const duration = last ? last.at + last.milliseconds : 0;
    const completed = requests.filter(({ outcome }) => outcome === "completed");
    const good = completed.filter(({ at, firstToken, end, tokens }) => {
      const between = tokens > 1 ? (end - firstToken) / (tokens - 1) : 0;
      return firstToken - at <= level.timeToFirstToken && between <= level.timeBetweenTokens;
    });
    const generated = requests.reduce((sum, { tokens }) => sum + tokens, 0);
    const perSecond = (count: number) => (duration > 0 ? (1000 * count) / duration : 0);
    return {
      completed: completed.length,
      cancelled: requests.filter(({ outcome }) => outcome === "cancelled").length,
      refused: requests.filter(({ outcome }) => outcome === "refused").length,
      duration,
      timeToFirstToken: percentiles(
        requests.filter(({ tokens }) => tokens > 0).map(({ at, firstToken }) => firstToken - at),
      ),
      timeBetweenTokens: percentiles(this.#gaps),
      throughput: perSecond(generated),
      goodput: perSecond(good.length),
      preemptions: steps.reduce((sum, { preempted }) => sum + preempted, 0),
      requests,
      steps,
    };
  }
}

/** By nearest rank. */
function percentiles(values: readonly number[]): Percentiles {
  const sorted = Float64Array.from(values).sort();
  const rank = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
  return { p50: rank(0.5), p99: rank(0.99), max: rank(1) };
}
