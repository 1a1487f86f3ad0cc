import type { StreamDecoder } from "@niwaki/tokenizer";
import type { Engine, EngineRequest, Sample } from "./engine.js";
import type { checkSampling } from "./options.js";
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

/** A piece of an answer: one for each token, then a last one with the reason. */
export interface Piece {
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
  readonly sampling: ReturnType<typeof checkSampling>;
  /** Tokens to generate at most, within the context. */
  readonly maxTokens: number;
  readonly stopIds: ReadonlySet<number>;
  readonly stops: readonly string[];
  readonly decoder: StreamDecoder;
  readonly signal: AbortSignal | undefined;
}

/** Streams one answer. The request begins with the first `next()` and is dropped when the consumer leaves. */
export async function* generation(engine: Engine, options: GenerationOptions): AsyncGenerator<Piece, void, undefined> {
  const { promptIds, maxTokens, decoder, signal } = options;
  const stopText = new StopText(options.stops);
  const pieces: Piece[] = [];
  let wake: (() => void) | undefined;
  let failure: { error: unknown } | undefined;
  let completionTokens = 0;
  let ended = false;

  const push = (piece: Piece) => {
    pieces.push(piece);
    wake?.();
  };
  const finish = (finishReason: FinishReason, text: string) => {
    ended = true;
    push({ text, tokens: [], finishReason, usage: { promptTokens: promptIds.length, completionTokens } });
  };
  const onSample = (sample: Sample): boolean => {
    if (options.stopIds.has(sample.token)) {
      // A character that never became whole shows as the decoder shows it; a stop string may still be in there.
      const rest = stopText.push(decoder.end());
      finish("stop", rest.stopped ? rest.text : rest.text + stopText.end());
      return false;
    }
    completionTokens++;
    const shown = stopText.push(decoder.push(sample.token));
    push({ text: shown.text, tokens: [generatedToken(sample)], finishReason: null, usage: null });
    if (shown.stopped) {
      finish("stop", "");
      return false;
    }
    if (completionTokens === maxTokens) {
      const rest = stopText.push(decoder.end());
      finish(rest.stopped ? "stop" : "length", rest.stopped ? rest.text : rest.text + stopText.end());
      return false;
    }
    return true;
  };
  const request: EngineRequest = {
    promptIds,
    sampling: options.sampling,
    onSample,
    onEnd(error) {
      failure = { error };
      wake?.();
    },
  };
  const onAbort = () => {
    if (ended || failure !== undefined) return;
    engine.cancel(request);
    finish("abort", stopText.end());
  };

  if (signal?.aborted) {
    onAbort();
  } else if (maxTokens === 0) {
    finish("length", "");
  } else {
    signal?.addEventListener("abort", onAbort, { once: true });
    engine.submit(request);
  }
  try {
    while (true) {
      const piece = pieces.shift();
      if (piece !== undefined) {
        yield piece;
        if (piece.finishReason !== null) return;
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
    engine.cancel(request);
  }
}

function generatedToken(sample: Sample): GeneratedToken {
  if (sample.logprob === null) return { id: sample.token };
  const top = sample.top.map(({ token, logprob }) => ({ id: token, logprob }));
  return { id: sample.token, logprob: sample.logprob, top };
}
