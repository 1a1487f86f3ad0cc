export type { ChatMessage } from "@niwaki/tokenizer";
export type { Chat } from "./chat.js";
export type { Qwen3Config } from "./config.js";
export type { Statistics, StepRecord } from "./engine-statistics.js";
export { ModelError, type ModelErrorCode } from "./error.js";
export { type Examination, examineModel, kvCacheBytes } from "./examine.js";
export type { FinishReason, GeneratedToken, Piece, TokenLogprob } from "./generation.js";
export { type LoadOptions, Qwen3Model } from "./model.js";
export type { GenerateOptions, Prompt, SamplingOptions } from "./options.js";
