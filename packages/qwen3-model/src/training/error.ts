/**
 * What went wrong:
 * - `invalid-option`: an option is out of its range;
 * - `bad-data`: a line of the data cannot be trained on; the message has its number;
 * - `bad-checkpoint`: a file that is no checkpoint, or one of another model, other data or other options;
 * - `busy`: training runs already; `disposed`: the trainer was disposed.
 */
export type TrainingErrorCode = "invalid-option" | "bad-data" | "bad-checkpoint" | "busy" | "disposed";

/** A training that cannot be done. The message says what to do. */
export class TrainingError extends Error {
  override readonly name = "TrainingError";
  constructor(
    readonly code: TrainingErrorCode,
    message: string,
    /** The option, file or line that is wrong, and the value found. */
    readonly detail: { option?: string; path?: string; line?: number; value?: unknown } = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
