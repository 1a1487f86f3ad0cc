import { addon, type Handle } from "./addon.js";
import { checkString } from "./check.js";
import { callNative } from "./error.js";
import { Owner } from "./owner.js";

/** A file mapped into memory, read-only, of the size it had when it was opened. */
export class MappedFile implements Disposable {
  readonly path: string;
  readonly byteLength: number;
  readonly #owner: Owner<Handle<"MappedFile">>;

  private constructor(path: string, byteLength: number, owner: Owner<Handle<"MappedFile">>) {
    this.path = path;
    this.byteLength = byteLength;
    this.#owner = owner;
  }

  /** Throws `io` with the path and the system's reason. */
  static open(path: string): MappedFile {
    checkString("path", path);
    const { handle, byteLength } = callNative(() => addon().openFile(path));
    return new MappedFile(path, byteLength, new Owner("MappedFile", handle));
  }

  /** @internal */
  get handle(): Handle<"MappedFile"> {
    return this.#owner.handle;
  }

  /** Ends the mapping, once the matrices that are being loaded from it are done. */
  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
