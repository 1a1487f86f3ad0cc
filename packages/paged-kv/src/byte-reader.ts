/** Reads given numbers of bytes from pieces of any size. */
export class ByteReader {
  readonly #pieces: AsyncIterator<Uint8Array> | Iterator<Uint8Array>;
  #piece: Uint8Array = new Uint8Array(0);
  #offset = 0;

  constructor(source: AsyncIterable<Uint8Array> | Iterable<Uint8Array>) {
    this.#pieces = Symbol.asyncIterator in source ? source[Symbol.asyncIterator]() : source[Symbol.iterator]();
  }

  /** The next `count` bytes, a copy, or null when fewer are left. */
  async read(count: number): Promise<Uint8Array<ArrayBuffer> | null> {
    const parts: Uint8Array[] = [];
    let missing = count;
    while (missing > 0) {
      if (!(await this.#fill())) return null;
      const part = this.#piece.subarray(this.#offset, this.#offset + missing);
      parts.push(part);
      this.#offset += part.length;
      missing -= part.length;
    }
    // Only now: a size that a damaged header claims costs nothing unless the bytes are there.
    const bytes = new Uint8Array(count);
    let end = 0;
    for (const part of parts) {
      bytes.set(part, end);
      end += part.length;
    }
    return bytes;
  }

  /** Whether no byte is left. */
  async isAtEnd(): Promise<boolean> {
    return !(await this.#fill());
  }

  /** Closes the source, also when it was not read to its end. */
  async close(): Promise<void> {
    await this.#pieces.return?.();
  }

  /** Makes the current piece one with bytes left to read. */
  async #fill(): Promise<boolean> {
    while (this.#offset === this.#piece.length) {
      const { done, value } = await this.#pieces.next();
      if (done) return false;
      this.#piece = value;
      this.#offset = 0;
    }
    return true;
  }
}
