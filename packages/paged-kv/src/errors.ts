/**
 * What went wrong, for programs:
 *
 * - `INVALID_ARGUMENT`: a size, count or array that no correct caller passes.
 * - `UNKNOWN_BLOCK`: a block id outside `0..blockCount - 1`.
 * - `DOUBLE_FREE`: a block that is free already, or named twice in one call.
 * - `SEQUENCE_DROPPED`: an operation on a sequence after `drop()`.
 * - `BEYOND_CAPACITY`: a position or length past the blocks that the sequence holds.
 * - `BEYOND_LENGTH`: a truncation to more tokens than are written.
 * - `UNWRITTEN_SLOT`: a read, or an advance, over a token whose K and V were never written.
 * - `NOT_WRITABLE`: a write into a block that others share, or over a token that counts already.
 * - `NO_STORAGE`: an operation that moves K and V, on a cache whose storage is missing or cannot do it.
 * - `NOT_A_SNAPSHOT`: the bytes are not a snapshot of this format and version.
 * - `SNAPSHOT_MISMATCH`: a good snapshot, but of another model, block size or storage.
 * - `SNAPSHOT_DAMAGED`: a snapshot that is cut off, too long, or whose checksum is wrong.
 * - `CORRUPT`: an integrity check found the books wrong; a bug in this package or in a custom storage.
 */
export type PagedKvErrorCode =
  | "INVALID_ARGUMENT"
  | "UNKNOWN_BLOCK"
  | "DOUBLE_FREE"
  | "SEQUENCE_DROPPED"
  | "BEYOND_CAPACITY"
  | "BEYOND_LENGTH"
  | "UNWRITTEN_SLOT"
  | "NOT_WRITABLE"
  | "NO_STORAGE"
  | "NOT_A_SNAPSHOT"
  | "SNAPSHOT_MISMATCH"
  | "SNAPSHOT_DAMAGED"
  | "CORRUPT";

/** Every error of this package. `value` is the offending value; whatever threw it has changed nothing. */
export class PagedKvError extends Error {
  override readonly name = "PagedKvError";

  constructor(
    readonly code: PagedKvErrorCode,
    message: string,
    readonly value?: unknown,
  ) {
    super(message);
  }
}

/** Refuses anything but a whole number from `least` to `most`. */
export function checkInteger(name: string, value: number, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new PagedKvError(
      "INVALID_ARGUMENT",
      `${name} must be an integer from ${least} to ${most}, got ${String(value)}`,
      value,
    );
  }
}
