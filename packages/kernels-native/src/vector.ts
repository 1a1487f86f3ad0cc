import type { Handle } from "./addon.js";

/** The float32 weights of a norm; made by `Device.loadVector`. A few kilobytes, freed by the garbage collector. */
export class Vector {
  readonly length: number;
  readonly #handle: Handle<"Vector">;

  /** @internal */
  constructor(length: number, handle: Handle<"Vector">) {
    this.length = length;
    this.#handle = handle;
  }

  /** @internal */
  get handle(): Handle<"Vector"> {
    return this.#handle;
  }
}
