import { checkIsFile, readBytes, withFile } from "./file-bytes.js";
import { GgufError } from "./gguf-error.js";
import { type GgufHeader, metadataStart, parseHeader } from "./header.js";
import { MoreBytesNeeded } from "./header-cursor.js";
import type { GgufTensor } from "./tensor-table.js";
import type { GgufValue } from "./value-type.js";

const firstRead = 256 * 1024;
/** Far above the header of any model (a vocabulary of 256k tokens with merges takes about 15 MB). */
const maxHeaderBytes = 64 * 2 ** 20;

/** A GGUF file's metadata and tensors. The file is open only while something is read from it: there is nothing to close. */
export class GgufFile {
  readonly path: string;
  /** Size of the file in bytes. */
  readonly byteLength: number;
  /** GGUF version, 2 or 3. */
  readonly version: number;
  /** Alignment of tensor data in bytes. */
  readonly alignment: number;
  /** All metadata, in file order. 64-bit integers are bigints here; `number()` and `numbers()` convert them. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** All tensors by name, in file order. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly #metadataEnd: number;

  private constructor(path: string, byteLength: number, header: GgufHeader) {
    this.path = path;
    this.byteLength = byteLength;
    this.version = header.version;
    this.alignment = header.alignment;
    this.metadata = header.metadata;
    this.#metadataEnd = header.metadataEnd;
    this.tensors = header.tensors;
  }

  /**
   * Opens a GGUF and reads its header only. Every count, length, offset and size in it is checked against the file's true
   * size before it is used.
   *
   * @throws GgufError with the byte offset, key or tensor, if the file is not a sound little-endian GGUF of version 2 or 3
   * @throws the signal's reason if it is aborted
   */
  static async open(path: string, options: { signal?: AbortSignal } = {}): Promise<GgufFile> {
    await checkIsFile(path, ".gguf");
    return await withFile(path, async (file) => {
      const { size } = await file.stat();
      for (let length = firstRead; ; ) {
        options.signal?.throwIfAborted();
        const bytes = await readBytes(file, path, 0, Math.min(length, size));
        options.signal?.throwIfAborted();
        try {
          return new GgufFile(path, size, await parseHeader(bytes, size, path));
        } catch (error) {
          if (!(error instanceof MoreBytesNeeded)) throw error;
          length = nextLength(length, error.end, path);
        }
      }
    });
  }

  /** Whether the metadata has `key`. */
  has(key: string): boolean {
    return this.metadata.has(key);
  }

  /** The string under `key`. @throws GgufError `missing-key`, `wrong-type` */
  string(key: string): string {
    const value = this.#value(key);
    if (typeof value === "string") return value;
    throw this.#wrongType(key, value, "a string");
  }

  /** The number under `key`, of any integer or float type. @throws GgufError `missing-key`, `wrong-type` */
  number(key: string): number {
    const value = toNumber(this.#value(key));
    if (value !== undefined) return value;
    throw this.#wrongType(key, this.#value(key), "a number of at most 53 bits");
  }

  /** The boolean under `key`. @throws GgufError `missing-key`, `wrong-type` */
  boolean(key: string): boolean {
    const value = this.#value(key);
    if (typeof value === "boolean") return value;
    throw this.#wrongType(key, value, "a boolean");
  }

  /** The array of strings under `key`. @throws GgufError `missing-key`, `wrong-type` */
  strings(key: string): string[] {
    const value = this.#value(key);
    if (Array.isArray(value) && value.every((element) => typeof element === "string")) return value as string[];
    throw this.#wrongType(key, value, "an array of strings");
  }

  /** The array of numbers under `key`. @throws GgufError `missing-key`, `wrong-type` */
  numbers(key: string): number[] {
    const value = this.#value(key);
    if (Array.isArray(value)) {
      const numbers = value.map(toNumber);
      if (numbers.every((element) => element !== undefined)) return numbers;
    }
    throw this.#wrongType(key, value, "an array of numbers of at most 53 bits");
  }

  /** The tensor called `name`. @throws GgufError `missing-tensor` */
  tensor(name: string): GgufTensor {
    const tensor = this.tensors.get(name);
    if (tensor !== undefined) return tensor;
    throw new GgufError(
      "missing-tensor",
      `the tensor "${name}" is missing (the file has ${this.tensors.size} others); convert the model again, or use a complete file`,
      { path: this.path, tensor: name },
    );
  }

  /** Reads the bytes of all metadata, keys, types and values as they stand in the file. */
  async readMetadata(): Promise<Uint8Array> {
    const byteLength = this.#metadataEnd - metadataStart;
    return await withFile(this.path, (file) => readBytes(file, this.path, metadataStart, byteLength));
  }

  /** Reads the bytes of the tensor called `name`; `dequantize` makes numbers of them. @throws GgufError `missing-tensor` */
  async readTensor(name: string): Promise<Uint8Array> {
    const { offset, byteLength } = this.tensor(name);
    return await withFile(this.path, (file) => readBytes(file, this.path, offset, byteLength));
  }

  #value(key: string): GgufValue {
    const value = this.metadata.get(key);
    if (value !== undefined) return value;
    throw new GgufError(
      "missing-key",
      `the metadata key "${key}" is missing (the file has ${this.metadata.size} others); convert the model again with a converter that writes it`,
      { path: this.path, key },
    );
  }

  #wrongType(key: string, value: GgufValue, wanted: string): GgufError {
    return new GgufError(
      "wrong-type",
      `the metadata key "${key}" is ${describe(value)}, but ${wanted} is needed; convert the model again`,
      { path: this.path, key },
    );
  }
}

function toNumber(value: GgufValue): number | undefined {
  if (typeof value === "number") return value;
  return typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : undefined;
}

function describe(value: GgufValue): string {
  if (Array.isArray(value)) {
    const types = [...new Set(value.map((element) => typeof element))].join(" and ");
    return `an array of ${value.length} elements${types === "" ? "" : ` (${types})`}`;
  }
  if (typeof value !== "string") return `the ${typeof value} ${value}`;
  return `the string ${JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value)}`;
}

/** Twice the bytes, or what is known to be needed: so that all reads together cost at most twice the last one. */
function nextLength(length: number, needed: number, path: string): number {
  if (needed > maxHeaderBytes) {
    throw new GgufError("corrupt", `the header takes more than ${maxHeaderBytes} bytes; that is not read`, { path });
  }
  return Math.max(2 * length, needed);
}
