import { highestTokenType } from "./token-type.js";
import { shown, TokenizerError } from "./tokenizer-error.js";

/** What makes a tokenizer: the `tokenizer.*` metadata of a GGUF file, with names of our own. */
export interface TokenizerConfig {
  /** `tokenizer.ggml.model`: the algorithm; `gpt2` is byte-level BPE. */
  model: string;
  /** `tokenizer.ggml.pre`: the pre-tokenizer's name. */
  pre: string;
  /** `tokenizer.ggml.tokens`: the text of every id; normal tokens are written in the byte-level alphabet. */
  tokens: string[];
  /** `tokenizer.ggml.token_type`: one for each token; 1 normal, 3 control, 4 user defined, 5 unused. */
  tokenTypes: number[];
  /** `tokenizer.ggml.merges`: pairs "left right", the most important first. */
  merges: string[];
  eosTokenId: number;
  bosTokenId?: number;
  paddingTokenId?: number;
  /** Whether encoded text starts with the BOS token. */
  addBosToken: boolean;
  /** `tokenizer.chat_template`: Jinja source. */
  chatTemplate?: string;
}

/** The metadata key that each field comes from, for errors. */
export const metadataKeys = {
  model: "tokenizer.ggml.model",
  pre: "tokenizer.ggml.pre",
  tokens: "tokenizer.ggml.tokens",
  tokenTypes: "tokenizer.ggml.token_type",
  merges: "tokenizer.ggml.merges",
  eosTokenId: "tokenizer.ggml.eos_token_id",
  bosTokenId: "tokenizer.ggml.bos_token_id",
  paddingTokenId: "tokenizer.ggml.padding_token_id",
  addBosToken: "tokenizer.ggml.add_bos_token",
  chatTemplate: "tokenizer.chat_template",
} as const;

/**
 * Reads the tokenizer out of a GGUF file's metadata.
 *
 * @param metadata key to value, as `GgufFile.metadata` of `@niwaki/gguf` gives it
 * @throws {TokenizerError} `missing-key` or `wrong-type` for the metadata itself, `unsupported-model` for another model
 *   than `gpt2` or another pre-tokenizer than `qwen2`, `bad-value` for lengths that differ and ids out of range
 */
export function tokenizerConfigFromMetadata(metadata: ReadonlyMap<string, unknown>): TokenizerConfig {
  const config: TokenizerConfig = {
    model: required(metadata, metadataKeys.model, isString, "a string"),
    pre: required(metadata, metadataKeys.pre, isString, "a string"),
    tokens: required(metadata, metadataKeys.tokens, isStrings, "an array of strings"),
    tokenTypes: required(metadata, metadataKeys.tokenTypes, isNumbers, "an array of numbers"),
    merges: required(metadata, metadataKeys.merges, isStrings, "an array of strings"),
    eosTokenId: Number(required(metadata, metadataKeys.eosTokenId, isInteger, "an integer")),
    // The specification's default: no BOS unless the file asks for it.
    addBosToken: optional(metadata, metadataKeys.addBosToken, isBoolean, "a boolean") ?? false,
  };
  const bosTokenId = optional(metadata, metadataKeys.bosTokenId, isInteger, "an integer");
  const paddingTokenId = optional(metadata, metadataKeys.paddingTokenId, isInteger, "an integer");
  const chatTemplate = optional(metadata, metadataKeys.chatTemplate, isString, "a string");
  if (bosTokenId !== undefined) config.bosTokenId = Number(bosTokenId);
  if (paddingTokenId !== undefined) config.paddingTokenId = Number(paddingTokenId);
  if (chatTemplate !== undefined) config.chatTemplate = chatTemplate;
  checkTokenizerConfig(config);
  return config;
}

/** Throws a {@link TokenizerError} unless the fields fit each other and name a tokenizer that we implement. */
export function checkTokenizerConfig(config: TokenizerConfig): void {
  supported(metadataKeys.model, config.model, "gpt2", "byte-level BPE");
  supported(metadataKeys.pre, config.pre, "qwen2", "the pre-tokenizer of Qwen2, Qwen2.5 and Qwen3");
  const count = config.tokens.length;
  if (count === 0) throw badValue(metadataKeys.tokens, [], "is empty; a tokenizer needs a vocabulary");
  if (config.tokenTypes.length !== count) {
    throw badValue(
      metadataKeys.tokenTypes,
      config.tokenTypes.length,
      `has ${config.tokenTypes.length} entries for ${count} tokens; it must have one for each`,
    );
  }
  const badType = config.tokenTypes.findIndex((type) => !Number.isInteger(type) || type < 0 || type > highestTokenType);
  if (badType >= 0) {
    const value = config.tokenTypes[badType];
    throw badValue(`${metadataKeys.tokenTypes}[${badType}]`, value, `is ${value}; token types go from 0 to 6`);
  }
  for (const field of ["eosTokenId", "bosTokenId", "paddingTokenId"] as const) {
    const id = config[field];
    if (id !== undefined && !(Number.isInteger(id) && id >= 0 && id < count)) {
      throw badValue(metadataKeys[field], id, `is ${id}, but the vocabulary has the ids 0 to ${count - 1}`);
    }
  }
  if (config.addBosToken && config.bosTokenId === undefined) {
    throw badValue(metadataKeys.addBosToken, true, `is true, but ${metadataKeys.bosTokenId} is missing`);
  }
}

/** An error about a metadata value; the message goes on after the key's name. */
export function badValue(key: string, value: unknown, message: string): TokenizerError {
  return new TokenizerError("bad-value", `${key} ${message}.`, { key, value });
}

function supported(key: string, value: string, only: string, meaning: string): void {
  if (value === only) return;
  const message = `${key} is ${shown(value)}; supported is ${shown(only)} (${meaning}). Use a GGUF of a Qwen3 model.`;
  throw new TokenizerError("unsupported-model", message, { key, value });
}

type Check<T> = (value: unknown) => value is T;

const isString = (value: unknown): value is string => typeof value === "string";
const isNumber = (value: unknown): value is number => typeof value === "number";
/** 64-bit integers of a GGUF are bigints. */
const isInteger = (value: unknown): value is number | bigint => Number.isInteger(value) || typeof value === "bigint";
const isBoolean = (value: unknown): value is boolean => typeof value === "boolean";
const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
const isNumbers = (value: unknown): value is number[] => Array.isArray(value) && value.every(isNumber);

function required<T>(metadata: ReadonlyMap<string, unknown>, key: string, check: Check<T>, kind: string): T {
  const value = optional(metadata, key, check, kind);
  if (value !== undefined) return value;
  const message = `The metadata has no ${key} (${kind}); the file has no complete tokenizer. Convert the model again.`;
  throw new TokenizerError("missing-key", message, { key });
}

function optional<T>(
  metadata: ReadonlyMap<string, unknown>,
  key: string,
  check: Check<T>,
  kind: string,
): T | undefined {
  const value = metadata.get(key);
  if (value === undefined || check(value)) return value;
  throw new TokenizerError("wrong-type", `${key} must be ${kind}, not ${shown(value)}.`, { key, value });
}
