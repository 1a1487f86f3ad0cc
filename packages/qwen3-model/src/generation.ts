import type { StreamDecoder } from "@niwaki/tokenizer";
import type { RequestAdapters } from "./adapters.js";
import type { Engine } from "./engine.js";
import type { EngineRequest, Sample } from "./engine-request.js";
import type { CheckedSampling } from "./options.js";
import { StopText } from "./stop-text.js";

/** Why an answer ended: an end-of-turn token or a stop string; `maxTokens` or the end of the context; its signal. */
export type FinishReason = "stop" | "length" | "abort";

export interface TokenLogprob {
  readonly id: number;
  readonly logprob: number;
}

export interface GeneratedToken {
  readonly id: number;
  /** Natural logarithm of the token's probability before penalties and filters; with the option `logprobs` only. */
  readonly logprob?: number;
  /** The most likely tokens, best first; with the option `logprobs` only. */
  readonly top?: readonly TokenLogprob[];
}

/** A piece of an answer: one for each token, then a last one with the reason; with `n`, the answers' pieces come mixed. */
export interface Piece {
  /** Which answer it belongs to, 0 to n - 1. */
  readonly choice: number;
  /** Whole characters only; empty while a character, or what may become a stop string, is incomplete. */
  readonly text: string;
  readonly tokens: readonly GeneratedToken[];
  /** null but for the last piece. */
  readonly finishReason: FinishReason | null;
  /** Tokens of the prompt and of the answer; of the last piece only. */
  readonly usage: { readonly promptTokens: number; readonly completionTokens: number } | null;
}

export interface GenerationOptions {
  readonly promptIds: readonly number[];
  readonly sampling: CheckedSampling;
  /** Answers. */
  readonly n: number;
  /** Tokens to generate at most, within the context. */
  readonly maxTokens: number;
  readonly stopIds: ReadonlySet<number>;
  readonly stops: readonly string[];
  readonly createDecoder: () => StreamDecoder;
  readonly signal: AbortSignal | undefined;
  readonly priority: number | undefined;
  readonly client: string | undefined;
  readonly cacheSalt: string | undefined;
  /** Waits for the adapters that the answers run with. */
  readonly acquire: ((signal?: AbortSignal) => Promise<RequestAdapters>) | undefined;
}

/** Pieces that wait for a slow consumer before its answers wait too. */
const MOST_UNREAD = 256;

/**
 * Streams the answers to one prompt. They begin with the first `next()`, wait for a consumer that is slow, and are dropped
 * when it leaves.
 */
export async function* generation(engine: Engine, options: GenerationOptions): AsyncGenerator<Piece, void, undefined> {
  const { n, signal } = options;
  const pieces: (() => Piece)[] = [];
  const waiting: (() => void)[] = [];
  let wake: (() => void) | undefined;
  let failure: { error: unknown } | undefined;
  const output: Output = {
    push(piece) {
      pieces.push(piece);
      wake?.();
    },
    room: () => pieces.length < MOST_UNREAD || new Promise<boolean>((resolve) => waiting.push(() => resolve(true))),
    fail(error) {
      failure = { error };
      wake?.();
    },
  };
  const answers = Array.from({ length: n }, (_, choice) => new Answer(choice, options, output));
  // The others come when the prompt is computed, and find it in the cache.
  answers[0]!.onFirstToken = () => {
    for (const answer of answers.slice(1)) if (!answer.ended) engine.submit(answer);
  };
  const onAbort = () => {
    for (const answer of answers) {
      engine.cancel(answer);
      answer.abort();
    }
  };

  const begin = async () => {
    if (signal?.aborted) {
      onAbort();
    } else if (options.maxTokens === 0) {
      for (const answer of answers) answer.finish("length", () => "");
    } else {
      signal?.addEventListener("abort", onAbort, { once: true });
      // An adapter may have to be loaded.
      if (options.acquire !== undefined) engine.endBurst();
      const adapters = await acquireUnlessAborted(options);
      for (const answer of answers) answer.adapters = adapters;
      if (!answers[0]!.ended) engine.submit(answers[0]!);
    }
  };

  try {
    await begin();
    for (let left = n; left > 0; ) {
      const next = pieces.shift();
      if (next !== undefined) {
        if (pieces.length === MOST_UNREAD / 2) for (const proceed of waiting.splice(0)) proceed();
        const piece = next();
        if (piece.finishReason !== null) left--;
        yield piece;
      } else if (failure !== undefined) {
        throw failure.error;
      } else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = undefined;
      }
    }
  } finally {
    signal?.removeEventListener("abort", onAbort);
    for (const answer of answers) engine.cancel(answer);
    answers[0]!.adapters?.release();
  }
}

async function acquireUnlessAborted({ acquire, signal }: GenerationOptions): Promise<RequestAdapters | undefined> {
  try {
    return await acquire?.(signal);
  } catch (error) {
    if (signal?.aborted) return undefined;
    throw error;
  }
}

/** Where answers put their pieces. */
interface Output {
  /** The piece is made when it is read: the next step need not wait for its text. */
  push(piece: () => Piece): void;
  /** Whether there is room for more, or will be. */
  room(): true | Promise<boolean>;
  fail(error: unknown): void;
}

/** One answer: the engine's request, whose tokens become pieces. */
class Answer implements EngineRequest {
  readonly promptIds: readonly number[];
  readonly sampling: CheckedSampling;
  readonly maxTokens: number;
  readonly stopTokens: readonly number[];
  readonly priority: number | undefined;
  readonly client: string | undefined;
  readonly cacheSalt: string | undefined;
  adapters: RequestAdapters | undefined;
  ended = false;
  onFirstToken: (() => void) | undefined;
  readonly #choice: number;
  readonly #options: GenerationOptions;
  readonly #output: Output;
  readonly #decoder: StreamDecoder;
  readonly #stopText: StopText;
  #completionTokens = 0;

  constructor(choice: number, options: GenerationOptions, output: Output) {
    const { sampling } = options;
    this.promptIds = options.promptIds;
    const seed = BigInt.asUintN(64, BigInt(sampling.seed) + BigInt(choice));
    this.sampling = choice === 0 ? sampling : { ...sampling, seed };
    this.maxTokens = options.maxTokens;
    this.stopTokens = [...options.stopIds];
    this.priority = options.priority;
    this.client = options.client;
    this.cacheSalt = options.cacheSalt;
    this.#choice = choice;
    this.#options = options;
    this.#output = output;
    this.#decoder = options.createDecoder();
    this.#stopText = new StopText(options.stops);
  }

  onSample(sample: Sample): boolean | Promise<boolean> {
    if (this.#completionTokens === 0) this.onFirstToken?.();
    if (this.#options.stopIds.has(sample.token)) {
      this.finish("stop", () => this.#rest().text);
      return false;
    }
    this.#completionTokens++;
    const isLast = this.#completionTokens === this.maxTokens;
    if (this.#options.stops.length > 0) return this.#search(sample, isLast);
    this.#output.push(() => this.#piece(sample, this.#decoder.push(sample.token)));
    if (isLast) {
      this.finish("length", () => this.#rest().text);
      return false;
    }
    return this.#output.room();
  }

  onEnd(error: unknown): void {
    this.ended = true;
    this.#output.fail(error);
  }

  abort(): void {
    if (!this.ended) this.finish("abort", () => this.#stopText.end());
  }

  finish(finishReason: FinishReason, text: () => string): void {
    this.ended = true;
    const usage = { promptTokens: this.promptIds.length, completionTokens: this.#completionTokens };
    this.#output.push(() => ({ choice: this.#choice, text: text(), tokens: [], finishReason, usage }));
  }

  /** `onSample` where a stop string may come: the text decides whether the answer goes on. */
  #search(sample: Sample, isLast: boolean): boolean | Promise<boolean> {
    const shown = this.#stopText.push(this.#decoder.push(sample.token));
    this.#output.push(() => this.#piece(sample, shown.text));
    if (shown.stopped) {
      this.finish("stop", () => "");
      return false;
    }
    if (isLast) {
      const rest = this.#rest();
      this.finish(rest.stopped ? "stop" : "length", () => rest.text);
      return false;
    }
    return this.#output.room();
  }

  #piece(sample: Sample, text: string): Piece {
    return { choice: this.#choice, text, tokens: [generatedToken(sample)], finishReason: null, usage: null };
  }

  /** A character that never became whole shows as the decoder shows it; a stop string may still be in there. */
  #rest(): { text: string; stopped: boolean } {
    const rest = this.#stopText.push(this.#decoder.end());
    return rest.stopped ? rest : { text: rest.text + this.#stopText.end(), stopped: false };
  }
}

function generatedToken(sample: Sample): GeneratedToken {
  if (sample.logprob === null) return { id: sample.token };
  const top = sample.top.map(({ token, logprob }) => ({ id: token, logprob }));
  return { id: sample.token, logprob: sample.logprob, top };
}
