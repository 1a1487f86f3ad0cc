/**
 * What went wrong:
 * - `invalid-argument`: an argument is out of its range; nothing was done.
 * - `out-of-memory`: the system has no memory for it.
 * - `io`: a file cannot be opened or mapped, or shrank after it was.
 * - `unsupported`: this machine or build does not have what was asked for.
 * - `non-finite`: NaN or infinity in weights or activations; the message names where.
 * - `cancelled`: the signal was aborted or the device disposed; `cause` is the signal's reason.
 * - `disposed`: the object was used after its `dispose()`.
 * - `addon-not-found`: no native binary could be loaded; the message lists what was tried.
 */
export type KernelErrorCode =
  | "invalid-argument"
  | "out-of-memory"
  | "io"
  | "unsupported"
  | "non-finite"
  | "cancelled"
  | "disposed"
  | "addon-not-found";

/** Every failure of this package. */
export class KernelError extends Error {
  override readonly name = "KernelError";
  readonly code: KernelErrorCode;
  /** Of `invalid-argument`: the argument's name, such as `step.outputs[2]`. */
  declare readonly argument?: string;
  /** Of `invalid-argument`: what was passed. */
  declare readonly value?: unknown;

  constructor(
    code: KernelErrorCode,
    message: string,
    details: { argument?: string; value?: unknown; cause?: unknown } = {},
  ) {
    super(message);
    this.code = code;
    Object.assign(this, details);
  }
}

const nativeCodes: ReadonlySet<unknown> = new Set<KernelErrorCode>([
  "invalid-argument",
  "out-of-memory",
  "io",
  "unsupported",
  "non-finite",
  "cancelled",
  "disposed",
]);

/** The KernelError of an error that C++ threw, `reason` being why it was cancelled; anything else is passed on as it is. */
export function fromNative(error: unknown, reason?: unknown): unknown {
  if (!(error instanceof Error) || error instanceof KernelError) return error;
  const { code } = error as { code?: unknown };
  if (!nativeCodes.has(code)) return error;
  const cause = code === "cancelled" && reason !== undefined ? { cause: reason } : {};
  return new KernelError(code as KernelErrorCode, error.message, cause);
}

/** Calls into C++ and turns what it throws into a KernelError. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}
