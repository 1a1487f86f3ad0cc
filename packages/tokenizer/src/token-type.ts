/** The values of `tokenizer.ggml.token_type` (GGUF specification). */
export const tokenType = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;

/** The highest value the GGUF specification gives a meaning: 6, a raw byte. */
export const highestTokenType = 6;
