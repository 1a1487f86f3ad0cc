import { Companion } from "../companion.js";

/** One engine, one model, one context: what a process of its own loads. */
export interface Job {
  readonly engine: EngineName;
  readonly path: string;
  readonly threads: number;
  /** The GPU that Niwaki runs on; the CPU with `threads` threads unless it is given. */
  readonly gpu?: number;
  /** Tokens of a prompt that Niwaki computes in a step; its own default unless it is given. */
  readonly chunkSize?: number;
  /** Sequences that may run together. */
  readonly sequences: number;
  /** Tokens of context of each. */
  readonly contextTokens: number;
  /** Number type of Niwaki's KV cache; float16 unless it is given. The peer's is always float16. */
  readonly kvType?: "f16" | "q8";
  /** Whether a few tokens of every sequence are computed before anything is measured. */
  readonly warmUp: boolean;
}

export type EngineName = "niwaki" | "node-llama-cpp";

/**
 * Random prompts that are continued together. A seed stands for its prompts: met again right after, they are not
 * computed again.
 */
export interface Task {
  readonly prompts: number;
  readonly promptTokens: number;
  /** Tokens to generate for each prompt. */
  readonly tokens: number;
  readonly seed: number;
  /** Whether the event loop's delay is measured: by a timer a millisecond, which takes some 4% of a token of the 1.7B. */
  readonly watchEventLoop?: boolean;
}

export interface Loaded {
  readonly loadSeconds: number;
  /** Bytes of KV cache, where known. */
  readonly kvBytes: number | null;
  /** Bytes of weights as the engine keeps them, where known. */
  readonly weightBytes: number | null;
}

export interface Timing {
  /** From the start until every prompt has its first token. */
  readonly firstTokenSeconds: number;
  /** Tokens of all prompts together for each second after that; null where there are none. */
  readonly tokensPerSecond: number | null;
  /** Peak resident memory of the process until now. */
  readonly peakBytes: number;
  /** 99th percentile of the event loop's delay during all watched tasks until now, milliseconds; null for one not watched. */
  readonly eventLoopDelayP99: number | null;
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

/** An engine in a process of its own. */
export interface EngineProcess {
  readonly loaded: Loaded;
  run(task: Task): Promise<Timing>;
}

/** Loads an engine for each job, one after another, for as long as `use` takes. */
export async function withEngines<const Jobs extends readonly Job[], Result>(
  jobs: Jobs,
  use: (engines: { [Index in keyof Jobs]: EngineProcess }) => Promise<Result>,
): Promise<Result> {
  const companions: Companion[] = [];
  try {
    const engines: EngineProcess[] = [];
    for (const job of jobs) {
      const companion = new Companion("engines/child");
      companions.push(companion);
      engines.push({ loaded: await companion.ask(job), run: (task) => companion.ask(task) });
    }
    return await use(engines as { [Index in keyof Jobs]: EngineProcess });
  } finally {
    await Promise.all(companions.map((companion) => companion.end()));
  }
}
