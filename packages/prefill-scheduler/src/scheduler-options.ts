import { checkInteger, SchedulerError } from "./errors.js";

/**
 * What a step is made of while some requests have prompts to compute and others decode:
 *
 * - `interleaved`: every decode row, and prompt chunks in the rest of the step. Running texts never pause, prompts advance
 *   in every step.
 * - `prefill-first`: prompt chunks alone, until no prompt can run; then decode rows. The shortest way to the first token;
 *   running texts pause for it, but at most for as many newcomers as run at once.
 * - `decode-priority`: decode rows alone, until no request decodes; then prompt chunks. The least time between tokens;
 *   newcomers wait until the texts that run have ended.
 */
export type Policy = "interleaved" | "prefill-first" | "decode-priority";

export interface SchedulerOptions {
  /** Rows (tokens) of a step, over all requests. */
  maxTokensPerStep: number;
  /** Requests that run at once; at most `maxTokensPerStep`, so that every decode row fits every step. */
  maxSequencesPerStep: number;
  /** The most tokens of one request in one step. */
  chunkSize: number;
  /** Tokens that the cache can hold for one request when no other is there. Longer requests are refused. */
  maxTokensPerRequest: number;
  /** Default `interleaved`. */
  policy?: Policy;
  /**
   * Milliseconds that a step with decode rows may take: the time between tokens. Prompt chunks are made as long as that
   * allows, by what steps cost as `complete` or `observe` were told. With `interleaved` only. Default: no limit.
   */
  targetMilliseconds?: number;
  /**
   * Share of the blocks, from 0 to below 1, that stays free when a request is admitted beside others, for the requests that
   * run to grow into. Needs a `BlockBudget` with a supply. Default 0.01.
   */
  watermark?: number;
  /**
   * What a level of priority is worth, in tokens of service to the client (a generated token counts twice): a request
   * goes before one that is a level more important and came so much later. Smaller is fairer to the unimportant. Default
   * 262,144.
   */
  agingTokens?: number;
}

const POLICIES: readonly Policy[] = ["interleaved", "prefill-first", "decode-priority"];

/** The options with their defaults; `targetMilliseconds` is infinite where there is no target. */
export function checkOptions(options: SchedulerOptions): Required<SchedulerOptions> {
  const { maxTokensPerStep, maxSequencesPerStep, chunkSize, maxTokensPerRequest } = options;
  const { policy = "interleaved", targetMilliseconds, watermark = 0.01, agingTokens = 262_144 } = options;
  checkInteger("maxTokensPerStep", maxTokensPerStep, 1);
  checkInteger("maxSequencesPerStep", maxSequencesPerStep, 1);
  checkInteger("chunkSize", chunkSize, 1);
  checkInteger("maxTokensPerRequest", maxTokensPerRequest, 1);
  checkInteger("agingTokens", agingTokens, 1, 2 ** 40);
  if (maxSequencesPerStep > maxTokensPerStep) {
    throw invalid(
      `maxSequencesPerStep (${maxSequencesPerStep}) must be at most maxTokensPerStep (${maxTokensPerStep}): ` +
        "each running request needs a row",
      maxSequencesPerStep,
    );
  }
  if (!POLICIES.includes(policy)) {
    throw invalid(`policy must be one of ${POLICIES.join(", ")}, got ${String(policy)}`, policy);
  }
  if (targetMilliseconds !== undefined && !(targetMilliseconds > 0)) {
    throw invalid(`targetMilliseconds must be above 0, got ${String(targetMilliseconds)}`, targetMilliseconds);
  }
  if (targetMilliseconds !== undefined && policy !== "interleaved") {
    throw invalid(
      `targetMilliseconds needs the policy interleaved: with ${policy} no step has prompts beside decode rows`,
      targetMilliseconds,
    );
  }
  if (!(watermark >= 0 && watermark < 1)) {
    throw invalid(`watermark must be at least 0 and below 1, got ${String(watermark)}`, watermark);
  }
  return {
    maxTokensPerStep,
    maxSequencesPerStep,
    chunkSize,
    maxTokensPerRequest,
    policy,
    targetMilliseconds: targetMilliseconds ?? Number.POSITIVE_INFINITY,
    watermark,
    agingTokens,
  };
}

function invalid(message: string, value: unknown): SchedulerError {
  return new SchedulerError("INVALID_ARGUMENT", message, value);
}
