import { GgufError, type GgufErrorCode, type GgufErrorPlace } from "./gguf-error.js";

/** Thrown when the header goes on beyond the bytes read so far, but not beyond the file. */
export class MoreBytesNeeded extends Error {
  constructor(readonly end: number) {
    super(`the header needs ${end} bytes`);
  }
}

/**
 * Reads the start of a file from front to back. Every read is checked twice: beyond the file's end is a `truncated` error,
 * beyond the bytes at hand a {@link MoreBytesNeeded}.
 *
 *     0        offset     bytes.length            fileSize
 *     |--read--|--at hand--|-------not read yet------|
 */
export class HeaderCursor {
  offset = 0;
  /** The metadata key or tensor that is being read, for errors. */
  subject: Pick<GgufErrorPlace, "key" | "tensor"> = {};
  /** Elements of all arrays so far. */
  arrayElements = 0;
  readonly view: DataView;
  readonly #buffer: Buffer;

  constructor(
    readonly bytes: Uint8Array,
    readonly fileSize: number,
    readonly path: string,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** An error about what stands at `offset`. */
  error(code: GgufErrorCode, message: string, offset = this.offset): GgufError {
    return new GgufError(code, message, { path: this.path, offset, ...this.subject });
  }

  /** Checks that `count` bytes follow, which `what` announces. */
  require(count: number, what: string): void {
    const end = this.offset + count;
    if (end <= this.bytes.length) return;
    if (end > this.fileSize) {
      throw this.error(
        "truncated",
        `${what} takes ${count} bytes, but only ${this.fileSize - this.offset} are left in the file of ` +
          `${this.fileSize} bytes; the file is cut short or damaged: download or convert it again`,
      );
    }
    throw new MoreBytesNeeded(end);
  }

  /** Passes over `count` bytes. */
  skip(count: number, what: string): void {
    this.require(count, what);
    this.offset += count;
  }

  u32(what: string): number {
    this.require(4, what);
    const value = this.view.getUint32(this.offset, true);
    this.offset += 4;
    return value;
  }

  /** An unsigned 64-bit integer; above 2^53 it is only nearly right, which is enough to refuse it. */
  u64(what: string): number {
    this.require(8, what);
    const value = this.view.getUint32(this.offset + 4, true) * 2 ** 32 + this.view.getUint32(this.offset, true);
    this.offset += 8;
    return value;
  }

  /** Passes over a string (its length and its bytes); returns the number of bytes. */
  skipString(what: string): number {
    const length = this.u64(`the length of ${what}`);
    if (this.offset + length > this.bytes.length) this.require(length, what);
    this.offset += length;
    return length;
  }

  /** Reads a string and checks that it is UTF-8. */
  string(what: string): string {
    const start = this.offset;
    const length = this.skipString(what);
    const text = this.#buffer.toString("utf8", this.offset - length, this.offset);
    // U+FFFD stands for broken bytes, unless the file really has it: then encoding gives the bytes back.
    if (
      text.includes("\ufffd") &&
      !Buffer.from(text).equals(this.#buffer.subarray(this.offset - length, this.offset))
    ) {
      throw this.error("corrupt", `${what} is not UTF-8, as the format requires; convert the model again`, start);
    }
    return text;
  }
}
