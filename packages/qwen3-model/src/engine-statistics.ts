import type { PagedKv } from "@niwaki/paged-kv";
import type { StepCost } from "@niwaki/prefill-scheduler";

/** One step as it went. Times are milliseconds of `performance.now()`. */
export interface StepRecord {
  /** Steps that followed one another at once have one number, also where their tokens came in several parts, each with its record. */
  readonly number: number;
  /**
   * When its planning began and ended (mostly while the step before ran), when the kernels began and ended (what they did
   * before, as the load of an adapter, is no part of it), and when it was settled who goes on.
   */
  readonly begun: number;
  readonly planned: number;
  readonly started: number;
  readonly ended: number;
  readonly delivered: number;
  /** 1, or more where decode steps followed at once, each with the same requests' next tokens. */
  readonly steps: number;
  /** Tokens computed by each of them. */
  readonly rows: number;
  /** Tokens `start` to `end - 1` of each request, in the first of them; `sample` where its next token was chosen. */
  readonly chunks: readonly {
    readonly request: number;
    readonly start: number;
    readonly end: number;
    readonly sample: boolean;
  }[];
  /** Requests that gave their blocks to others. */
  readonly preempted: readonly number[];
  readonly waiting: number;
  readonly freeBlocks: number;
}

/** What an engine has done since it was made, and how it stands. */
export interface Statistics {
  readonly steps: number;
  /** Tokens computed, of prompts and answers, and answers' tokens chosen. */
  readonly computedTokens: number;
  readonly generatedTokens: number;
  readonly preemptions: number;
  /** Milliseconds in the kernels, and those that a step's kernels waited for the engine or for the load of an adapter. */
  readonly kernelMilliseconds: number;
  readonly overheadMilliseconds: number;
  readonly running: number;
  readonly waiting: number;
  /** What a step costs in milliseconds, as learned; null before the first. */
  readonly stepCost: StepCost | null;
  readonly cache: ReturnType<PagedKv["stats"]>;
}

export class EngineStatistics {
  readonly #onStep: ((step: StepRecord) => void) | undefined;
  #steps = 0;
  #computedTokens = 0;
  #generatedTokens = 0;
  #preemptions = 0;
  #kernelMilliseconds = 0;
  #overheadMilliseconds = 0;
  #lastDelivered = 0;

  constructor(onStep: ((step: StepRecord) => void) | undefined) {
    this.#onStep = onStep;
  }

  count(step: StepRecord): void {
    this.#steps += step.steps;
    this.#computedTokens += step.rows * step.steps;
    for (const { sample } of step.chunks) if (sample) this.#generatedTokens += step.steps;
    this.#preemptions += step.preempted.length;
    this.#kernelMilliseconds += step.ended - step.started;
    const { begun, started, ended, delivered } = step;
    this.#overheadMilliseconds += started - Math.max(begun, this.#lastDelivered) + (delivered - ended);
    this.#lastDelivered = delivered;
    this.#onStep?.(step);
  }

  snapshot(running: number, waiting: number, cache: Statistics["cache"], stepCost: StepCost | null): Statistics {
    return {
      steps: this.#steps,
      computedTokens: this.#computedTokens,
      generatedTokens: this.#generatedTokens,
      preemptions: this.#preemptions,
      kernelMilliseconds: this.#kernelMilliseconds,
      overheadMilliseconds: this.#overheadMilliseconds,
      running,
      waiting,
      stepCost,
      cache,
    };
  }
}
