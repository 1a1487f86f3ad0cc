/** What went wrong, for programs; the message says it for people. */
export type GgufErrorCode =
  /** The file cannot be opened or read at all. */
  | "unreadable"
  /** A file cannot be written. */
  | "unwritable"
  /** The file is something else than a GGUF. */
  | "not-gguf"
  /** The file is something else than safetensors. */
  | "not-safetensors"
  /** A GGUF with big-endian numbers. */
  | "wrong-endian"
  /** A GGUF version other than 2 and 3. */
  | "unsupported-version"
  /** The file ends before what its header announces. */
  | "truncated"
  /** The header contradicts itself or the format. */
  | "corrupt"
  /** A metadata key that was asked for is not in the file. */
  | "missing-key"
  /** A metadata value is of another type than was asked for. */
  | "wrong-type"
  /** A tensor that was asked for is not in the file. */
  | "missing-tensor"
  /** A tensor's type cannot be told from its id and size. */
  | "unsupported-type"
  /** An argument of a call (not the file) is wrong. */
  | "invalid-argument";

/** Where an error was found; every part is optional. */
export interface GgufErrorPlace {
  readonly path?: string | undefined;
  /** Byte offset in the file. */
  readonly offset?: number | undefined;
  /** Metadata key. */
  readonly key?: string | undefined;
  /** Tensor name. */
  readonly tensor?: string | undefined;
  readonly cause?: unknown;
}

/** The only error this package throws for a bad file or a bad argument: what was found, where, and the way out. */
export class GgufError extends Error {
  override readonly name = "GgufError";
  readonly code: GgufErrorCode;
  readonly path?: string;
  readonly offset?: number;
  readonly key?: string;
  readonly tensor?: string;

  constructor(code: GgufErrorCode, message: string, place: GgufErrorPlace = {}) {
    const where = place.offset === undefined ? "" : ` (at byte ${place.offset})`;
    const file = place.path === undefined ? "" : `${place.path}: `;
    super(`${file}${message}${where}`, place.cause === undefined ? undefined : { cause: place.cause });
    this.code = code;
    if (place.path !== undefined) this.path = place.path;
    if (place.offset !== undefined) this.offset = place.offset;
    if (place.key !== undefined) this.key = place.key;
    if (place.tensor !== undefined) this.tensor = place.tensor;
  }
}
