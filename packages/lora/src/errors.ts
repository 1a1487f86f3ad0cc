/** What went wrong, for programs; the message says it for people. */
export type LoraErrorCode =
  /** A file or folder is missing or cannot be read. */
  | "unreadable"
  /** The adapter's configuration is no LoRA's, or contradicts itself. */
  | "bad-config"
  /** The adapter has something that cannot be applied to a frozen base: embeddings, biases, whole modules, another method. */
  | "unsupported"
  /** The adapter was made for a model of another architecture or size. */
  | "wrong-base"
  /** A tensor has other dimensions than the base's module. */
  | "wrong-shape"
  /** A tensor has another rank than the configuration, or its other half, says. */
  | "wrong-rank"
  /** A tensor is neither F32, F16 nor BF16. */
  | "wrong-type"
  /** A value is infinite or NaN. */
  | "not-finite"
  /** One half of a pair, or a pair that the configuration announces, is not in the file. */
  | "missing-tensor"
  /** A tensor belongs to no module of the base, or to one that the configuration does not name. */
  | "unknown-tensor"
  /** The change cannot be kept in the weights' type: merging into 1-bit weights. */
  | "quantized-weights"
  /** The file format cannot hold this adapter. */
  | "not-expressible"
  /** DoRA's output depends on the base's weights, which were not given. */
  | "needs-weights"
  /** The weights hold the adapter already, or do not hold it. */
  | "merge-state"
  /** No adapter has this name. */
  | "unknown-adapter"
  /** Another adapter has this name. */
  | "name-taken"
  /** The adapters together would take more memory than allowed. */
  | "over-budget"
  /** More adapters at a time than there are slots for. */
  | "no-slots"
  /** The adapter is being unloaded. */
  | "unloading"
  /** An argument of a call is wrong. */
  | "invalid-argument";

/** Where an error was found; every part is optional. */
export interface LoraErrorPlace {
  /** File or folder. */
  readonly path?: string | undefined;
  /** Name of the tensor as it stands in the file, or as the base has it. */
  readonly tensor?: string | undefined;
  /** The offending value. */
  readonly value?: unknown;
  readonly cause?: unknown;
}

/** Every error of this package about an adapter or an argument: what was found, where, and the way out. */
export class LoraError extends Error {
  override readonly name = "LoraError";
  readonly code: LoraErrorCode;
  readonly path?: string;
  readonly tensor?: string;
  readonly value?: unknown;

  constructor(code: LoraErrorCode, message: string, place: LoraErrorPlace = {}) {
    const file = place.path === undefined ? "" : `${place.path}: `;
    super(`${file}${message}`, place.cause === undefined ? undefined : { cause: place.cause });
    this.code = code;
    if (place.path !== undefined) this.path = place.path;
    if (place.tensor !== undefined) this.tensor = place.tensor;
    if ("value" in place) this.value = place.value;
  }
}

/** The same error with the file's path, unless it has one. */
export function atPath(error: unknown, path: string): unknown {
  if (!(error instanceof LoraError) || error.path !== undefined) return error;
  return new LoraError(error.code, error.message, { path, tensor: error.tensor, value: error.value, cause: error });
}
