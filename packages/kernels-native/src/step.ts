import type { AdapterSlots } from "./adapter-slots.js";

/** One forward pass: any mix of prompt chunks and decode rows. Its arrays are copied at the call. */
export interface Step {
  /** The token of each row, grouped by sequence. */
  tokens: Int32Array;
  /** Their row counts add up to the number of rows. */
  sequences: StepSequence[];
  /** Rows that need logits, ascending. */
  outputs: Int32Array;
  /** What to sample from them. */
  samples?: SampleSpec[];
  /** The slots that the adapters of the sequences are in; of the plan that runs the step. */
  adapterSlots?: AdapterSlots;
  /** Return the logits of every output row too. */
  logits?: boolean;
  /**
   * So many steps may follow at once, without a way through JavaScript; 0 unless given. Each is a decode step of the same
   * sequences: the row of a sequence is the token that the step before chose for it. For that the last row of each
   * sequence, and no other, is an output and has its sample, in the same order and without `history`, block tables reach
   * for the tokens of all steps, and there are no `logits`. The first step that chooses a stop token is the last.
   */
  following?: number;
}

/** Consecutive rows of one sequence. Row i of them is at position `contextLength - rowCount + i`. */
export interface StepSequence {
  rowCount: number;
  /** Tokens of the sequence after the step. */
  contextLength: number;
  /** Ids of at least `ceil(contextLength / blockSize)` blocks. */
  blockTable: Int32Array;
  /** The adapters that its rows run with, added in this order; none unless given. */
  adapters?: readonly AdapterUse[];
}

/** One adapter of a mix. */
export interface AdapterUse {
  slot: number;
  /** What it adds is multiplied by this. */
  weight: number;
}

/**
 * How to choose a token from the logits of one output row. In this order: bias, penalties over `history`, then greedy or
 * temperature, top-k, top-p, min-p and a draw. The draw depends on the seed and the position alone.
 */
export interface SampleSpec {
  /** Index into `Step.outputs`. */
  output: number;
  /** 0 (the default): greedy, ties to the lowest id. */
  temperature?: number;
  /** Keep the k most likely; 0 (the default): all. */
  topK?: number;
  /** Keep the most likely up to this probability together, from 0 to 1 (the default: all); one is always kept. */
  topP?: number;
  /** Drop what is less likely than this share of the most likely, from 0 (the default) to 1. */
  minP?: number;
  /** Keskar et al., 2019; 1 (the default): off. */
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  /** 64 bits; 0 unless given. */
  seed?: bigint | number;
  /** Also return log-probabilities, before any change to the logits: of the chosen token and of the n most likely. */
  logprobs?: number;
  /** The tokens that the penalties look at. */
  history?: Int32Array;
  /** Token to what is added to its logit; -Infinity bans it. */
  bias?: ReadonlyMap<number, number>;
  /** Tokens that no step follows, where steps may follow (`Step.following`). */
  stopTokens?: readonly number[];
}

export interface TokenLogprob {
  token: number;
  logprob: number;
}

export interface SampleResult {
  token: number;
  /** null unless `logprobs` was given. */
  logprob: number | null;
  /** The most likely tokens, descending, ties to the lower id; empty unless `logprobs` was given. */
  top: TokenLogprob[];
}

export interface StepResult {
  /** One for each of `Step.samples`, of each of the steps that ran, but for those that came before (`RunOptions`). */
  samples: SampleResult[];
  /** `[outputs, vocabulary]`, or null unless asked for. */
  logits: Float32Array | null;
  /** When the device had the step, checked and laid out, and all before it was done: milliseconds of `performance.now()`. */
  started: number;
}
