import { type AnyHandle, addon } from "./addon.js";
import { KernelError } from "./error.js";

/** Owns a native object until it is disposed; if it never is, the garbage collector frees it. */
export class Owner<H extends AnyHandle> {
  readonly #noun: string;
  #handle: H | undefined;

  constructor(noun: string, handle: H) {
    this.#noun = noun;
    this.#handle = handle;
  }

  /** Throws `disposed`. */
  get handle(): H {
    if (this.#handle === undefined) {
      throw new KernelError("disposed", `this ${this.#noun} has been disposed and cannot be used any more`);
    }
    return this.#handle;
  }

  dispose(): void {
    if (this.#handle === undefined) return;
    addon().dispose(this.#handle);
    this.#handle = undefined;
  }
}
