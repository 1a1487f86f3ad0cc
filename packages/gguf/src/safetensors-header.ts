import { GgufError, type GgufErrorCode } from "./gguf-error.js";
import { jsonKeys } from "./json-keys.js";

/** Bytes of one element, by the names that the format gives its types. */
const elementBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
} as const;

/** An element type of safetensors. */
export type SafetensorsDtype = keyof typeof elementBytes;

/** A tensor of a safetensors file. */
export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  /** Lengths, slowest first: a weight `[out, in]` is `out` rows of `in`; `[]` for a single value. */
  readonly shape: readonly number[];
  /** First byte of the data, from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

/** All that a header says, checked. */
export interface SafetensorsHeader {
  readonly metadata: Map<string, string>;
  readonly tensors: Map<string, SafetensorsTensor>;
}

/** The format's own limit. */
const maxHeaderBytes = 100_000_000;
/** Far above any use. */
const maxDimensions = 16;

/** Bytes that tensors of `shape` take, or undefined for an unknown type or a shape that is none. */
export function safetensorsBytes(dtype: string, shape: readonly unknown[]): number | undefined {
  if (!Object.hasOwn(elementBytes, dtype) || shape.length > maxDimensions) return undefined;
  let bytes: number = elementBytes[dtype as SafetensorsDtype];
  for (const length of shape) {
    if (!Number.isSafeInteger(length) || (length as number) < 0) return undefined;
    bytes *= length as number;
  }
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** The names of the types, for messages. */
export const safetensorsDtypes: string = Object.keys(elementBytes).join(", ");

/**
 * The length of the JSON header of a file that begins with `start`.
 *
 * @param start the first bytes of the file, 8 of them unless it is shorter
 * @throws GgufError `not-safetensors`, or `truncated` where the file is too short for the length
 */
export function headerLength(start: Uint8Array, fileSize: number, path: string): number {
  if (start.length < 8) {
    throw new GgufError("not-safetensors", `a file of ${fileSize} bytes is no safetensors; the download has failed`, {
      path,
    });
  }
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  const length = view.getBigUint64(0, true);
  if (length >= 2n && length <= fileSize - 8 && length <= maxHeaderBytes) return Number(length);
  const text = Buffer.from(start).toString("latin1");
  const isOther = length > 2n ** 40n;
  throw new GgufError(
    isOther ? "not-safetensors" : length > fileSize - 8 ? "truncated" : "corrupt",
    isOther
      ? `the file starts with ${JSON.stringify(text)}, which is no safetensors; ${hint(text)}`
      : `the header is said to take ${length} bytes; 2 to ${maxHeaderBytes} are allowed, and the file has ` +
          `${Math.max(0, fileSize - 8)} for it: download or convert it again`,
    { path, offset: 0 },
  );
}

function hint(start: string): string {
  if (start.startsWith("GGUF")) return "it is a GGUF";
  if (start.startsWith("version ")) return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`";
  if (start.startsWith("PK")) return "it looks like a PyTorch checkpoint: save it as safetensors";
  if (/^\s*</.test(start)) return "it is a web page: check the address it was downloaded from";
  return "pass a .safetensors file";
}

/**
 * Reads the JSON header (without the eight bytes of its length) of a file of `fileSize` bytes. As the format has it, the
 * tensors' data must fill the rest of the file without gaps or overlaps.
 *
 * @throws GgufError `corrupt`, `truncated` or `unsupported-type`, naming the byte or the tensor
 */
export function parseSafetensorsHeader(bytes: Uint8Array, fileSize: number, path: string): SafetensorsHeader {
  const refuse = (message: string, tensor?: string, code: GgufErrorCode = "corrupt", offset?: number) =>
    new GgufError(code, message, { path, tensor, offset });
  const entries = parseEntries(bytes, path);
  const dataStart = 8 + bytes.length;
  const dataBytes = fileSize - dataStart;
  const metadata = new Map<string, string>();
  const tensors: SafetensorsTensor[] = [];
  for (const [name, entry] of entries) {
    if (!isObject(entry)) throw refuse(`the header has ${JSON.stringify(name)}, which is no object`, name);
    if (name === "__metadata__") {
      for (const [key, value] of Object.entries(entry)) {
        if (typeof value !== "string") {
          throw new GgufError("corrupt", `the metadata key ${JSON.stringify(key)} is no string`, { path, key });
        }
        metadata.set(key, value);
      }
      continue;
    }
    const { dtype, shape, data_offsets: offsets } = entry;
    const what = `the tensor ${JSON.stringify(name)}`;
    if (typeof dtype !== "string" || !Array.isArray(shape) || !Array.isArray(offsets) || offsets.length !== 2) {
      throw refuse(`${what} needs dtype, shape and two data_offsets; convert the file again`, name);
    }
    if (!Object.hasOwn(elementBytes, dtype)) {
      throw refuse(
        `${what} is of type ${JSON.stringify(dtype)}; the types are ${safetensorsDtypes}`,
        name,
        "unsupported-type",
      );
    }
    const byteLength = safetensorsBytes(dtype, shape);
    if (byteLength === undefined) {
      throw refuse(`${what} has the shape ${JSON.stringify(shape)}; up to ${maxDimensions} lengths are needed`, name);
    }
    const [begin, end] = offsets as unknown[];
    if (!isOffset(begin) || !isOffset(end) || begin > end || end - begin !== byteLength) {
      throw refuse(
        `${what}, ${dtype} [${shape.join(", ")}], takes ${byteLength} bytes, but its data_offsets are ${JSON.stringify(offsets)}`,
        name,
      );
    }
    if (end > dataBytes) {
      throw refuse(
        `${what} ends ${end - dataBytes} bytes after the file; it is cut short or damaged: download or convert it again`,
        name,
        "truncated",
        dataStart + begin,
      );
    }
    tensors.push({
      name,
      dtype: dtype as SafetensorsDtype,
      shape: shape as number[],
      offset: dataStart + begin,
      byteLength,
    });
  }
  checkNoGaps(tensors, dataStart, fileSize, path);
  return { metadata, tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])) };
}

function parseEntries(bytes: Uint8Array, path: string): [string, unknown][] {
  const refuse = (reason: string, offset = 8) =>
    new GgufError("corrupt", `the header is no JSON object: ${reason}; download or convert the file again`, {
      path,
      offset,
    });
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw refuse("it is not UTF-8");
  }
  if (!text.startsWith("{")) throw refuse(`it starts with ${JSON.stringify(text[0])}`);
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw refuse(error instanceof Error ? error.message : String(error));
  }
  if (!isObject(parsed)) throw refuse("it is a list");
  // JSON.parse keeps the last of two entries under one name without a word.
  const names = new Set<string>();
  for (const name of jsonKeys(text)) {
    if (names.has(name)) {
      throw new GgufError("corrupt", `the tensor ${JSON.stringify(name)} stands twice; convert the file again`, {
        path,
        tensor: name,
      });
    }
    names.add(name);
  }
  return Object.entries(parsed);
}

function checkNoGaps(tensors: readonly SafetensorsTensor[], start: number, end: number, path: string): void {
  let at = start;
  for (const { name, offset, byteLength } of [...tensors].sort(
    (x, y) => x.offset - y.offset || x.byteLength - y.byteLength,
  )) {
    if (offset !== at) {
      throw new GgufError(
        "corrupt",
        `the data of the tensor ${JSON.stringify(name)} begins at byte ${offset}, where ${at} is expected; data must ` +
          "stand without gaps and overlaps: convert the file again",
        { path, offset, tensor: name },
      );
    }
    at += byteLength;
  }
  if (at !== end) {
    throw new GgufError("corrupt", `${end - at} bytes at the end of the file belong to no tensor; convert it again`, {
      path,
      offset: at,
    });
  }
}

function isOffset(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
