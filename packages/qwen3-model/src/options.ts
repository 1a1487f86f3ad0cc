import type { SampleSpec } from "@niwaki/kernels-native";
import type { ChatMessage } from "@niwaki/tokenizer";
import type { AdapterChoice } from "./adapters.js";
import { ModelError } from "./error.js";

/** Where text comes from: raw text (control tokens in it are recognised), token ids, or messages for the file's chat template. */
export type Prompt = string | readonly number[] | readonly ChatMessage[];

export interface SamplingOptions {
  /** 0 (the default): greedy, the most likely token. */
  temperature?: number;
  /** Keep the k most likely tokens; 0 (the default): all. */
  topK?: number;
  /** Keep the most likely tokens that together reach this probability (nucleus sampling); 1 (the default): all. */
  topP?: number;
  /** Keep tokens at least this share as likely as the best; 0 (the default): all. */
  minP?: number;
  /** Divides (or multiplies, if negative) the logits of tokens in the window; 1 (the default): off. */
  repetitionPenalty?: number;
  /** Subtracted from the logit of every token in the window. */
  presencePenalty?: number;
  /** Subtracted from the logit of a token for each time it is in the window. */
  frequencyPenalty?: number;
  /** How many of the last tokens, prompt included, the penalties look at. 64 if absent. */
  penaltyWindow?: number;
  /** Added to the logits of single tokens; -Infinity bans one. */
  logitBias?: ReadonlyMap<number, number>;
  /** The same seed gives the same text, whatever else runs. Drawn at random if absent. */
  seed?: number | bigint;
  /** Gives log-probabilities of the chosen token and of the n most likely. */
  logprobs?: number;
}

export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate; up to the end of the context if absent. */
  maxTokens?: number;
  /** Strings that end the answer; they are not part of it. */
  stop?: string | readonly string[];
  /** Ends the answer with the reason `abort`. */
  signal?: AbortSignal;
  /** Answers to the same prompt, which is computed once; each has its own seed, `seed` + its number. 1 if absent. */
  n?: number;
  /** Lower comes first, from -1000 to 1000. 0 if absent. */
  priority?: number;
  /** Who asks: clients get equal shares when there is more to do than time. */
  client?: string;
  /** The adapter to answer with, by its name, or a mix: `[{ name, scale }]`. None if absent. */
  adapter?: AdapterChoice;
  /** Prompts share what was computed with prompts of the same salt only. */
  cacheSalt?: string;
  /** For messages: let the model think first (the template's default), or not. */
  thinking?: boolean;
  /** For messages: tool definitions, passed to the template as they are. */
  tools?: readonly unknown[];
  /** For messages: recognise control tokens inside contents too. Only for contents that you wrote yourself. */
  trustContents?: boolean;
}

/** Options of sampling, checked and complete. */
export type CheckedSampling = Required<Omit<SamplingOptions, "logprobs" | "logitBias">> &
  Pick<SamplingOptions, "logprobs" | "logitBias">;

/** @throws ModelError `invalid-option` naming the option, its value and what is allowed. */
export function checkSampling(options: SamplingOptions, vocabulary: number): CheckedSampling {
  const number = (name: keyof SamplingOptions, absent: number, allowed: string, fits: (value: number) => boolean) => {
    const value = options[name] ?? absent;
    if (typeof value !== "number" || Number.isNaN(value) || !fits(value)) throw invalidOption(name, value, allowed);
    return value;
  };
  const whole = (value: number) => Number.isInteger(value) && value >= 0 && value < 2 ** 31;
  const finite = Number.isFinite;
  const seed = options.seed ?? Math.floor(Math.random() * 2 ** 32);
  if (typeof seed === "bigint" ? seed < 0n || seed >= 1n << 64n : !Number.isSafeInteger(seed) || seed < 0) {
    throw invalidOption("seed", seed, "a whole number from 0 to 2^64 - 1");
  }
  for (const [token, bias] of options.logitBias ?? []) {
    if (!Number.isInteger(token) || token < 0 || token >= vocabulary) {
      throw invalidOption("logitBias", token, `a token from 0 to ${vocabulary - 1}`);
    }
    if (Number.isNaN(bias) || bias === Number.POSITIVE_INFINITY) {
      throw invalidOption("logitBias", bias, "a number or -Infinity");
    }
  }
  return {
    temperature: number("temperature", 0, "a number from 0 up", (value) => value >= 0 && finite(value)),
    topK: number("topK", 0, "a whole number from 0 up", whole),
    topP: number("topP", 1, "a number above 0, up to 1", (value) => value > 0 && value <= 1),
    minP: number("minP", 0, "a number from 0 to 1", (value) => value >= 0 && value <= 1),
    repetitionPenalty: number("repetitionPenalty", 1, "a number above 0", (value) => value > 0 && finite(value)),
    presencePenalty: number("presencePenalty", 0, "a finite number", finite),
    frequencyPenalty: number("frequencyPenalty", 0, "a finite number", finite),
    penaltyWindow: number("penaltyWindow", 64, "a whole number from 0 up", whole),
    seed,
    ...(options.logprobs === undefined
      ? {}
      : {
          logprobs: number("logprobs", 0, `a whole number from 0 to ${vocabulary}`, (n) => whole(n) && n <= vocabulary),
        }),
    ...(options.logitBias === undefined ? {} : { logitBias: options.logitBias }),
  };
}

/** The native form; `history` is there, and to be filled in, where penalties look at it. */
export function sampleSpec(sampling: CheckedSampling): SampleSpec {
  const { penaltyWindow: _, logitBias, ...rest } = sampling;
  const penalized = rest.repetitionPenalty !== 1 || rest.presencePenalty !== 0 || rest.frequencyPenalty !== 0;
  return {
    ...rest,
    output: 0,
    ...(logitBias === undefined ? {} : { bias: logitBias }),
    ...(penalized ? { history: new Int32Array(0) } : {}),
  };
}

/** @throws ModelError `invalid-option`. */
export function checkMaxTokens(value: number | undefined): number {
  if (value === undefined) return Number.POSITIVE_INFINITY;
  if (!Number.isInteger(value) || value < 0) throw invalidOption("maxTokens", value, "a whole number from 0 up");
  return value;
}

/** @throws ModelError `invalid-option`. */
export function checkChoices(n = 1): number {
  if (!Number.isInteger(n) || n < 1 || n > 1024) throw invalidOption("n", n, "a whole number from 1 to 1024");
  return n;
}

/** @throws ModelError `invalid-option`. */
export function checkPriority(priority: number | undefined): number | undefined {
  if (priority !== undefined && !(Number.isInteger(priority) && Math.abs(priority) <= 1000)) {
    throw invalidOption("priority", priority, "a whole number from -1000 to 1000");
  }
  return priority;
}

/** @throws ModelError `invalid-option`. */
export function checkStop(stop: string | readonly string[] | undefined): readonly string[] {
  const stops = stop === undefined ? [] : typeof stop === "string" ? [stop] : stop;
  for (const text of stops) {
    if (typeof text !== "string" || text === "") throw invalidOption("stop", text, "strings that are not empty");
  }
  return stops;
}

export function invalidOption(option: string, value: unknown, allowed: string): ModelError {
  return new ModelError("invalid-option", `The option ${option} is ${format(value)}; allowed is ${allowed}.`, {
    option,
    value,
  });
}

function format(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}
