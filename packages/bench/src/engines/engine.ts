/** What a process measures: one engine, one model, one context, and the tasks to run on it in order. */
export interface Job {
  readonly engine: EngineName;
  readonly path: string;
  readonly threads: number;
  /** Sequences that may run together. */
  readonly sequences: number;
  /** Tokens of context of each. */
  readonly contextTokens: number;
  /** Number type of Niwaki's KV cache; float16 unless it is given. The peer's is always float16. */
  readonly kvType?: "f16" | "q8";
  /** Whether a few tokens of every sequence are computed before anything is measured. */
  readonly warmUp: boolean;
  readonly tasks: readonly Task[];
}

export type EngineName = "niwaki" | "node-llama-cpp";

/** Random prompts that are continued together. No two tasks of a job share a seed, so that no prefix is met twice. */
export interface Task {
  readonly prompts: number;
  readonly promptTokens: number;
  /** Tokens to generate for each prompt. */
  readonly tokens: number;
  readonly seed: number;
}

/** What a process tells, as one line of JSON on standard output. */
export interface Report {
  readonly loadSeconds: number;
  /** Peak resident memory of the process, bytes. */
  readonly peakBytes: number;
  /** Bytes of KV cache within it, where known. */
  readonly kvBytes: number | null;
  /** Bytes of weights within it, as the engine keeps them, where known. */
  readonly weightBytes: number | null;
  /** 99th percentile of the event loop's delay during the tasks, milliseconds. */
  readonly eventLoopDelayP99: number;
  /** One for each task. */
  readonly timings: readonly Timing[];
}

export interface Timing {
  /** From the start until every prompt has its first token. */
  readonly firstTokenSeconds: number;
  /** Tokens of all prompts together for each second after that; null where there are none. */
  readonly tokensPerSecond: number | null;
}

/** A loaded model with its context. */
export interface Engine {
  readonly vocabulary: number;
  readonly kvBytes: number | null;
  readonly weightBytes: number | null;
  /**
   * Continues all prompts together by exactly `tokens` tokens each, greedily, past any end of turn. `arrived` is called
   * with the index of the prompt for every token.
   */
  generate(prompts: readonly number[][], tokens: number, arrived: (prompt: number) => void): Promise<void>;
  dispose(): Promise<void>;
}
