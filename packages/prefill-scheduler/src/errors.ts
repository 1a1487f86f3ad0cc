/**
 * What went wrong, for programs:
 *
 * - `INVALID_ARGUMENT`: an option or count that no correct caller passes.
 * - `REQUEST_TOO_LONG`: the request needs more tokens than the cache can ever hold for one request.
 * - `DUPLICATE_REQUEST`: the request was added before and is not finished.
 * - `UNKNOWN_REQUEST`: the request was never added, or is finished or aborted.
 * - `STALE_PLAN`: a plan that was completed already, or a request that moved on since it was made.
 * - `OUT_OF_BLOCKS`: the only running request cannot get its blocks, so nothing can ever run; the block budget gives
 *   less than `maxTokensPerRequest` promises.
 * - `CORRUPT`: an integrity check found the queues wrong; a bug in this package.
 */
export type SchedulerErrorCode =
  | "INVALID_ARGUMENT"
  | "REQUEST_TOO_LONG"
  | "DUPLICATE_REQUEST"
  | "UNKNOWN_REQUEST"
  | "STALE_PLAN"
  | "OUT_OF_BLOCKS"
  | "CORRUPT";

/** Every error of this package. `value` is the offending value: a number, or the request. */
export class SchedulerError extends Error {
  override readonly name = "SchedulerError";

  constructor(
    readonly code: SchedulerErrorCode,
    message: string,
    readonly value: unknown,
  ) {
    super(message);
  }
}

/** Refuses anything but a whole number from `least` to `most`. */
export function checkInteger(name: string, value: number, least: number, most = Number.MAX_SAFE_INTEGER): void {
  if (!Number.isSafeInteger(value) || value < least || value > most) {
    const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
    throw new SchedulerError("INVALID_ARGUMENT", `${name} must be an integer ${range}, got ${String(value)}`, value);
  }
}
