import type { SampleSpec, StepResult } from "@niwaki/kernels-native";
import type { Sequence } from "@niwaki/paged-kv";
import type { RequestAdapters } from "./adapters.js";
import { type CheckedSampling, sampleSpec } from "./options.js";

/** A token that was chosen, with log-probabilities if they were asked for. */
export type Sample = StepResult["samples"][number];

/** One request as the engine sees it: tokens in, tokens out. The callbacks run between steps. */
export interface EngineRequest {
  readonly promptIds: readonly number[];
  /** How to choose tokens; absent for a request that only wants its prompt computed. */
  readonly sampling?: CheckedSampling;
  /** Tokens that it wants at most: no step is prepared for more. */
  readonly maxTokens?: number;
  /** Tokens that end it, as `onSample` will say: no step is made for what comes after them. */
  readonly stopTokens?: readonly number[];
  /** Lower comes first. */
  readonly priority?: number | undefined;
  /** Clients get equal shares. */
  readonly client?: string | undefined;
  /** Prefixes are shared among requests of the same salt only. */
  readonly cacheSalt?: string | undefined;
  /** What its rows run with; held until it ends. */
  readonly adapters?: RequestAdapters | undefined;
  /**
   * A token was chosen. Returns whether the request goes on; after false the engine forgets it. With a promise the request
   * waits, and the others go on, until it is settled. The next step waits for the return: no work beyond that here.
   */
  onSample?(sample: Sample): boolean | Promise<boolean>;
  /** Logits of the prompt's rows from `start` on: [rows, vocabulary]. A request with it ends after its prompt. */
  onLogits?(start: number, logits: Float32Array): void | Promise<void>;
  /** The request ended otherwise: all logits given, or an error of the step. */
  onEnd(error?: unknown): void;
}

/** Requests share prefixes with those of the same salt and the same adapters. */
export function prefixKey(cacheSalt = "", adapters?: RequestAdapters): string {
  return JSON.stringify(adapters === undefined ? [cacheSalt] : [cacheSalt, adapters.cacheKey]);
}

/** A request in the engine. */
export class Entry {
  readonly promptTokens: number;
  readonly priority: number | undefined;
  readonly client: string | undefined;
  /** Prompt and answer as far as they are known. */
  readonly tokens: number[];
  /** Tokens chosen. */
  chosen = 0;
  /** The scheduler has a row for a token that the running step will choose. */
  expecting = false;
  /** A token was chosen, and whether it goes on is not said yet. */
  deciding = false;
  /** The engine has forgotten it. */
  gone = false;
  readonly #spec: SampleSpec | undefined;

  constructor(
    readonly id: number,
    readonly request: EngineRequest,
    readonly sequence: Sequence,
  ) {
    this.promptTokens = request.promptIds.length;
    this.priority = request.priority;
    this.client = request.client;
    this.tokens = [...request.promptIds];
    if (request.sampling !== undefined && request.onLogits === undefined) {
      const { stopTokens } = request;
      this.#spec = { ...sampleSpec(request.sampling), ...(stopTokens === undefined ? {} : { stopTokens }) };
    }
  }

  /** Whether the last row of all its tokens is there to choose the next one. */
  get samples(): boolean {
    return this.#spec !== undefined && !this.deciding;
  }

  /** Whether it may go on after the next token. */
  get mayGoOn(): boolean {
    return this.chosen + 1 < (this.request.maxTokens ?? Number.POSITIVE_INFINITY);
  }

  /** Steps that may follow its next one without the engine, at most: penalties look at every token before the next. */
  get mayFollow(): number {
    if (!this.samples || this.#spec!.history !== undefined) return 0;
    return Math.max(0, (this.request.maxTokens ?? 0) - this.chosen - 1);
  }

  /** How to choose its next token from this output row; good until it is asked again. */
  sampleFrom(output: number): SampleSpec {
    const spec = this.#spec!;
    spec.output = output;
    if (spec.history !== undefined) {
      const { penaltyWindow } = this.request.sampling!;
      spec.history = Int32Array.from(this.tokens.slice(Math.max(0, this.tokens.length - penaltyWindow)));
    }
    return spec;
  }
}
