/**
 * Turns token ids into text as they come. A token may hold part of a UTF-8 character; its bytes are kept back until the
 * character is whole, so that the pieces together are exactly what `decode` gives for all ids at once.
 */
export class StreamDecoder {
  readonly #bytesOf: (id: number) => Uint8Array;
  #decoder = utf8Decoder();

  /** @param bytesOf the bytes a token adds to the text; none for one that is to be left out */
  constructor(bytesOf: (id: number) => Uint8Array) {
    this.#bytesOf = bytesOf;
  }

  /**
   * The text that this token completes; often "" in scripts whose characters take several tokens.
   *
   * @throws {TokenizerError} `bad-token-id` for an id outside the vocabulary
   */
  push(id: number): string {
    return this.#decoder.decode(this.#bytesOf(id), { stream: true });
  }

  /** What is left: U+FFFD when the tokens ended inside a character, else "". The decoder is then as new. */
  end(): string {
    const rest = this.#decoder.decode();
    this.#decoder = utf8Decoder();
    return rest;
  }
}

/** UTF-8 as in the Encoding Standard, and without swallowing a byte order mark: it is part of the model's text. */
export function utf8Decoder() {
  return new TextDecoder("utf-8", { ignoreBOM: true });
}
