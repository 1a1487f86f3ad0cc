/**
 * What went wrong:
 * - `missing-key`, `wrong-type`, `bad-value`: the metadata (`key`) cannot make a tokenizer;
 * - `unsupported-model`: a tokenizer family this package does not implement;
 * - `unencodable-text`: the vocabulary has no token for a byte of the text;
 * - `bad-token-id`: an id that is not in the vocabulary;
 * - `bad-message`, `bad-option`: an argument of `renderChat` or `encodeChat`;
 * - `missing-template`, `template-failed`: the chat template is absent, does not parse, or raised an error;
 * - `ambiguous-template`: control tokens written in messages cannot be told apart from the template's own.
 */
export type TokenizerErrorCode =
  | "missing-key"
  | "wrong-type"
  | "bad-value"
  | "unsupported-model"
  | "unencodable-text"
  | "bad-token-id"
  | "bad-message"
  | "bad-option"
  | "missing-template"
  | "template-failed"
  | "ambiguous-template";

/** Every error of this package. `key` is the metadata key or the argument's path, `value` the offending value. */
export class TokenizerError extends Error {
  override readonly name = "TokenizerError";
  readonly code: TokenizerErrorCode;
  readonly key?: string;
  readonly value?: unknown;

  constructor(
    code: TokenizerErrorCode,
    message: string,
    details: { key?: string; value?: unknown; cause?: unknown } = {},
  ) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    if (details.key !== undefined) this.key = details.key;
    if ("value" in details) this.value = details.value;
  }
}

/** A value as it should look inside an error message: JSON where possible, cut to a readable length. */
export function shown(value: unknown): string {
  let text: string | undefined;
  try {
    if (typeof value !== "number") text = JSON.stringify(value);
  } catch {
    // A cyclic object or a bigint: its plain string says enough.
  }
  text ??= String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
