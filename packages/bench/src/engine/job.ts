/** What a process of this benchmark measures. */
export type EngineJob =
  | { readonly measure: "blocks" | "schedule"; readonly rounds: number }
  | ModelJob<"steps", Steps>
  | (ModelJob<"shared", SharedPrefix> & { readonly engine: "niwaki" | "node-llama-cpp" | "node-llama-cpp with states" })
  | ModelJob<"prefix", CachedPrefix>
  | ModelJob<"arrival", ArrivingPrompt>;

interface ModelJob<Measure, Workload> {
  readonly measure: Measure;
  readonly path: string;
  readonly threads: number;
  readonly workload: Workload;
}

/** One operation on blocks. */
export interface OperationCost {
  readonly nanoseconds: number;
  /** Bytes that it leaves to the garbage collector. */
  readonly garbageBytes: number;
}

export type BlocksReport = Readonly<Record<"decodeToken" | "matchBlock" | "allocateBlock", OperationCost>>;

/** Microseconds of `schedule()`. */
export interface ScheduleReport {
  readonly decoding: Quantiles;
  /** While prompts are computed in chunks within a target, and more wait. */
  readonly withPrompts: Quantiles;
}

export interface Quantiles {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** Requests that decode together. */
export interface Steps {
  readonly requests: number;
  readonly tokens: number;
}

/** Milliseconds of a step with one row of every request. */
export interface StepsReport {
  readonly steps: number;
  readonly kernel: Quantiles;
  /** Planning and handing out, as the engine counts it. */
  readonly overhead: Quantiles;
  /** From the end of the kernels to the start of the next step's: what the consumers do as well. */
  readonly between: Quantiles;
}

/** Requests whose prompts begin alike, sent at once. */
export interface SharedPrefix {
  readonly requests: number;
  readonly sharedTokens: number;
  readonly ownTokens: number;
  readonly answerTokens: number;
}

export interface SharedReport {
  readonly seconds: number;
  /** Of Niwaki. */
  readonly steps: StepsReport | null;
}

/** Prompts of which the beginning was computed before, and others that are new. */
export interface CachedPrefix {
  readonly prefixTokens: number;
  readonly ownTokens: number;
  readonly rounds: number;
}

/** Seconds to the first token, medians. */
export interface PrefixReport {
  readonly cold: number;
  readonly cached: number;
}

/** A prompt that comes while chats run. */
export interface ArrivingPrompt {
  readonly chats: number;
  readonly chatTokens: number;
  readonly promptTokens: number;
  /** The target for the time between tokens, in plain decode steps. */
  readonly targetSteps: number;
}

/** Milliseconds. */
export interface ArrivalReport {
  readonly decodeStep: number;
  readonly target: number;
  /** Between the tokens of the chats while the prompt is computed. */
  readonly betweenTokens: Quantiles;
  /** Until the prompt's first token. */
  readonly promptSeconds: number;
  readonly steps: number;
}
