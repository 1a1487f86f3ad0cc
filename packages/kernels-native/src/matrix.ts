import type { Handle } from "./addon.js";
import { Owner } from "./owner.js";

/**
 * Weights `[rows, columns]` packed for the kernels, in their own types; made by `Device.loadMatrix`. A plan that uses a
 * matrix keeps its memory after `dispose()`, until the plan is disposed too.
 */
export class Matrix implements Disposable {
  readonly rows: number;
  readonly columns: number;
  /** Bytes of the packed weights. */
  readonly byteLength: number;
  readonly #owner: Owner<Handle<"Matrix">>;

  /** @internal */
  constructor(rows: number, columns: number, native: { handle: Handle<"Matrix">; byteLength: number }) {
    this.rows = rows;
    this.columns = columns;
    this.byteLength = native.byteLength;
    this.#owner = new Owner("Matrix", native.handle);
  }

  /** @internal */
  get handle(): Handle<"Matrix"> {
    return this.#owner.handle;
  }

  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
