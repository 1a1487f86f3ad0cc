/** What a process that loads a model and answers tells, as one line of JSON on standard output. */
export interface LoadReport {
  readonly loadSeconds: number;
  readonly firstTokenSeconds: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** Peak resident memory of the process, bytes. */
  readonly peakBytes: number;
  /** Bytes of KV cache within it, where known. */
  readonly kvBytes: number | null;
  /** 99th percentile of the event loop's delay while generating, milliseconds. */
  readonly eventLoopDelayP99: number;
}

export const PROMPT_TOKENS = 16;
export const ANSWER_TOKENS = 48;
export const CONTEXT_TOKENS = 512;
