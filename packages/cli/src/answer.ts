import type { FinishReason, Piece, Qwen3Model } from "@niwaki/qwen3-model";
import { ThinkingText } from "./thinking.js";

/** An answer that was streamed to its end, and how long it took. */
export interface Answer {
  readonly text: string;
  readonly thinking: string;
  readonly tokenIds: number[];
  readonly finishReason: FinishReason;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Seconds from the request to the first token; null if there was none. */
  readonly secondsToFirstToken: number | null;
  /** Tokens a second after the first; null if there were fewer than two. */
  readonly tokensPerSecond: number | null;
}

/** Where an answer is shown while it comes. */
export interface Show {
  thinking(text: string): void;
  answer(text: string): void;
}

/** Streams an answer; Ctrl-C stops the answer and not the program. */
export async function streamAnswer(
  generate: (signal: AbortSignal) => AsyncIterable<Piece>,
  show: Show,
): Promise<Answer> {
  const abort = new AbortController();
  const onInterrupt = () => abort.abort();
  process.on("SIGINT", onInterrupt);
  const split = new ThinkingText();
  const tokenIds: number[] = [];
  const begun = performance.now();
  let firstAt: number | undefined;
  let lastAt = begun;
  let text = "";
  let thinking = "";
  let last: Piece | undefined;
  const take = (part: { thinking: string; answer: string }) => {
    thinking += part.thinking;
    text += part.answer;
    if (part.thinking !== "") show.thinking(part.thinking);
    if (part.answer !== "") show.answer(part.answer);
  };
  try {
    for await (const piece of generate(abort.signal)) {
      if (piece.tokens.length > 0) {
        lastAt = performance.now();
        firstAt ??= lastAt;
      }
      for (const token of piece.tokens) tokenIds.push(token.id);
      take(split.push(piece.text));
      last = piece;
    }
    take(split.end());
  } finally {
    process.off("SIGINT", onInterrupt);
  }
  return {
    text,
    thinking,
    tokenIds,
    finishReason: last?.finishReason ?? "abort",
    promptTokens: last?.usage?.promptTokens ?? 0,
    completionTokens: tokenIds.length,
    secondsToFirstToken: firstAt === undefined ? null : (firstAt - begun) / 1000,
    tokensPerSecond:
      firstAt === undefined || tokenIds.length < 2 ? null : ((tokenIds.length - 1) * 1000) / (lastAt - firstAt),
  };
}

/** One line for people: what was read and written, and how fast. */
export function summary(answer: Answer): string {
  const parts = [`${answer.promptTokens} tokens in`, `${answer.completionTokens} out`];
  if (answer.secondsToFirstToken !== null)
    parts.push(`first after ${(answer.secondsToFirstToken * 1000).toFixed(0)} ms`);
  if (answer.tokensPerSecond !== null) parts.push(`${answer.tokensPerSecond.toFixed(1)} tokens/s`);
  if (answer.finishReason !== "stop") parts.push(answer.finishReason === "abort" ? "stopped" : "out of room");
  return parts.join(", ");
}

/** The GPU that a model runs on, for the end of a line; nothing on a CPU. */
export function onGpu({ device }: Pick<Qwen3Model, "device">): string {
  return device.backend === "cpu" ? "" : `, on ${device.name}`;
}

/** Shows an answer on standard output, and thoughts, dimmed on a terminal, on standard error. */
export function showOnTerminal(): Show {
  const dim = process.stderr.isTTY ? (text: string) => `\x1b[2m${text}\x1b[22m` : (text: string) => text;
  let thought = false;
  return {
    thinking(text) {
      // The empty block of a model that does not think is nothing to show.
      if (!thought && text.trim() === "") return;
      thought = true;
      process.stderr.write(dim(text));
    },
    answer(text) {
      if (thought) process.stderr.write("\n");
      thought = false;
      process.stdout.write(text);
    },
  };
}
