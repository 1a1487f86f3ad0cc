export type ModelErrorCode =
  | "unsupported-architecture"
  | "unsupported-model"
  | "unsupported-tensor-type"
  | "wrong-shape"
  | "missing-tensor"
  | "unexpected-tensor"
  | "invalid-option"
  | "invalid-token"
  | "empty-prompt"
  | "context-exceeded"
  | "disposed";

/** A model file that cannot be run, or a request that cannot be served. The message says what to do. */
export class ModelError extends Error {
  override readonly name = "ModelError";
  constructor(
    readonly code: ModelErrorCode,
    message: string,
    /** The metadata key, tensor, or option that is wrong, and the value found. */
    readonly detail: { key?: string; tensor?: string; option?: string; value?: unknown } = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
