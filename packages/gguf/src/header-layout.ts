import { GgufError } from "./gguf-error.js";
import type { HeaderCursor } from "./header-cursor.js";
import { arrayTypeId, fixedSizes, scalarTypeIds } from "./value-type.js";

/** Where one metadata entry stands: `start` key, `value` the value after its type id, `end`. */
export interface MetadataPlace {
  readonly key: string;
  readonly typeId: number;
  readonly start: number;
  readonly value: number;
  readonly end: number;
}

/** Where one tensor's entry stands. */
export interface TensorPlace {
  readonly name: string;
  readonly start: number;
}

/**
 * A header whose structure is known to be sound: every count, length and type id has been followed to its end inside the
 * file, keys and names are unique, dimensions are in range.
 *
 *     magic version counts | metadata entries | tensor entries | padding | data
 *     0                    24                 tensorsStart     end
 */
export interface HeaderLayout {
  readonly version: number;
  readonly alignment: number;
  readonly metadata: readonly MetadataPlace[];
  readonly tensors: readonly TensorPlace[];
  readonly tensorsStart: number;
  readonly end: number;
}

// Limits of the parser that reads the values, far above any model's. Checked here, where the place is known.
const maxKeys = 100_000;
const maxStringBytes = 10_000_000;
const maxArrayDepth = 4;
const maxDimension = 2 ** 32;
/** ggml's own limit. */
const maxDimensions = 4;
const maxKeyBytes = 65_535;

const defaultAlignment = 32;

/**
 * Follows the structure of the GGUF header under `cursor`, allocating nothing that the file's bytes do not back.
 *
 * @throws GgufError for anything that is not a sound header, with its byte offset
 * @throws MoreBytesNeeded if the header goes on beyond the bytes at hand
 */
export function readHeaderLayout(cursor: HeaderCursor): HeaderLayout {
  checkMagic(cursor);
  const version = readVersion(cursor);
  const tensorCount = readCount(cursor, "tensor", minTensorBytes, cursor.fileSize);
  const keyCount = readCount(cursor, "metadata key", minEntryBytes, maxKeys);

  let alignment = defaultAlignment;
  const metadata: MetadataPlace[] = [];
  const keys = new Set<string>();
  for (let i = 0; i < keyCount; i++) {
    const place = readMetadataPlace(cursor, i);
    if (keys.has(place.key)) {
      cursor.offset = place.start;
      throw cursor.error("corrupt", `the metadata key "${place.key}" stands twice; convert the model again`, {
        key: place.key,
      });
    }
    keys.add(place.key);
    metadata.push(place);
    if (place.key === "general.alignment") alignment = readAlignment(cursor, place);
  }

  const tensorsStart = cursor.offset;
  const tensors: TensorPlace[] = [];
  const names = new Set<string>();
  for (let i = 0; i < tensorCount; i++) {
    const place = readTensorPlace(cursor, i);
    if (names.has(place.name)) {
      throw new GgufError("corrupt", `the tensor "${place.name}" stands twice; convert the model again`, {
        path: cursor.path,
        offset: place.start,
        tensor: place.name,
      });
    }
    names.add(place.name);
    tensors.push(place);
  }
  return { version, alignment, metadata, tensors, tensorsStart, end: cursor.offset };
}

/** The least a metadata entry takes: key length, one byte of key, type, one byte of value. */
const minEntryBytes = 8 + 1 + 4 + 1;
/** The least a tensor's entry takes: name length, one byte of name, number of dimensions, one of them, type, offset. */
const minTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

function checkMagic(cursor: HeaderCursor): void {
  if (cursor.fileSize < 4) {
    throw cursor.error("not-gguf", `a file of ${cursor.fileSize} bytes is no GGUF; the download has probably failed`);
  }
  cursor.require(4, "the magic number");
  const start = Buffer.from(cursor.bytes.subarray(0, Math.min(16, cursor.bytes.length))).toString("latin1");
  if (start.startsWith("GGUF")) {
    cursor.offset = 4;
    return;
  }
  if (start.startsWith("FUGG")) throw wrongEndian(cursor);
  throw cursor.error(
    "not-gguf",
    `the file starts with ${JSON.stringify(start.slice(0, 4))}, not "GGUF"; ${hint(start)}`,
  );
}

function hint(start: string): string {
  if (start.startsWith("version https:")) return "it is a Git LFS pointer: fetch the model itself with `git lfs pull`";
  if (/^\s*<(!doctype|html|\?xml)/i.test(start)) return "it is a web page: check the address it was downloaded from";
  if (start.startsWith("PK")) return "it looks like a PyTorch checkpoint: convert it to GGUF first";
  if (start[8] === "{") return "it looks like a safetensors file: convert it to GGUF first";
  if (/^(lmgg|tjgg|fmgg|algg)/.test(start)) return "it is a format older than GGUF: convert the original model again";
  return "pass a .gguf file";
}

function wrongEndian(cursor: HeaderCursor): GgufError {
  return cursor.error(
    "wrong-endian",
    "the file is a big-endian GGUF; only little-endian files can be run: convert the model again on (or for) a little-endian machine",
  );
}

function readVersion(cursor: HeaderCursor): number {
  const version = cursor.u32("the version");
  if (version === 2 || version === 3) return version;
  cursor.offset -= 4;
  const swapped = cursor.view.getUint32(cursor.offset, false);
  if (swapped >= 1 && swapped <= 0xffff) throw wrongEndian(cursor);
  throw cursor.error(
    "unsupported-version",
    `GGUF version ${version} cannot be read, only 2 and 3; ` +
      (version === 1 ? "convert the original model again" : "a newer release of this package may read it"),
  );
}

/** Reads how many of something follow; each takes at least `minBytes`, so that the file bounds the count. */
function readCount(cursor: HeaderCursor, noun: string, minBytes: number, limit: number): number {
  const start = cursor.offset;
  const count = cursor.u64(`the number of ${noun}s`);
  if (count * minBytes > cursor.fileSize - cursor.offset) {
    cursor.offset = start;
    throw cursor.error(
      "truncated",
      `the header announces ${count} ${noun}s, which take at least ${count * minBytes} bytes, but the file has only ` +
        `${cursor.fileSize}; it is cut short or damaged: download or convert it again`,
    );
  }
  if (count > limit) {
    cursor.offset = start;
    throw cursor.error("corrupt", `the header announces ${count} ${noun}s; more than ${limit} are not read`);
  }
  return count;
}

function readMetadataPlace(cursor: HeaderCursor, index: number): MetadataPlace {
  const start = cursor.offset;
  const key = readKey(cursor, index);
  const what = `the value of metadata key "${key}"`;
  const typeId = cursor.u32(`the type of metadata key "${key}"`);
  const value = cursor.offset;
  try {
    skipValue(cursor, typeId, what);
  } catch (error) {
    if (!(error instanceof GgufError)) throw error;
    // The helpers know the offset only; the key belongs into the error's fields as well.
    throw new GgufError(error.code, error.detail, { path: cursor.path, offset: error.offset, key });
  }
  return { key, typeId, start, value, end: cursor.offset };
}

function readKey(cursor: HeaderCursor, index: number): string {
  const start = cursor.offset;
  const what = `metadata key ${index}`;
  const length = cursor.u64(`the length of ${what}`);
  cursor.offset = start;
  if (length === 0 || length > maxKeyBytes) {
    throw cursor.error("corrupt", `${what} is ${length} bytes long; the format allows 1 to ${maxKeyBytes}`);
  }
  const key = cursor.string(what);
  if (!/^[\x20-\x7e]+$/.test(key)) {
    cursor.offset = start;
    throw cursor.error("corrupt", `${what} is ${JSON.stringify(key)}; the format allows printable ASCII only`);
  }
  return key;
}

function skipValue(cursor: HeaderCursor, typeId: number, what: string): void {
  const size = fixedSizes.get(typeId);
  if (typeId === arrayTypeId) {
    skipArray(cursor, what, 0);
  } else if (typeId === scalarTypeIds.string) {
    skipText(cursor, what);
  } else if (typeId === scalarTypeIds.bool) {
    skipBools(cursor, 1, what);
  } else if (size !== undefined) {
    cursor.skip(size, what);
  } else {
    cursor.offset -= 4;
    throw cursor.error(
      "corrupt",
      `${what} has the type ${typeId}; GGUF has the types 0 to 12: convert the model again`,
    );
  }
}

function skipText(cursor: HeaderCursor, what: string): void {
  const start = cursor.offset;
  const length = cursor.u64(`the length of ${what}`);
  cursor.offset = start;
  if (length > maxStringBytes && start + 8 + length <= cursor.fileSize) {
    throw cursor.error("corrupt", `${what} is a string of ${length} bytes; more than ${maxStringBytes} are not read`);
  }
  cursor.string(what);
}

function skipArray(cursor: HeaderCursor, what: string, depth: number): void {
  const start = cursor.offset;
  if (depth === maxArrayDepth) {
    throw cursor.error("corrupt", `${what} has arrays nested more than ${maxArrayDepth} deep; that is not read`);
  }
  const elementType = cursor.u32(`the element type of ${what}`);
  const elementBytes = elementType === arrayTypeId ? 12 : (fixedSizes.get(elementType) ?? 8);
  if (elementType > scalarTypeIds.float64) {
    cursor.offset = start;
    throw cursor.error("corrupt", `${what} is an array of type ${elementType}; GGUF has the types 0 to 12`);
  }
  const count = cursor.u64(`the length of ${what}`);
  if (count * elementBytes > cursor.fileSize - cursor.offset) {
    cursor.offset = start;
    throw cursor.error(
      "truncated",
      `${what} is an array of ${count} elements, which take at least ${count * elementBytes} bytes, but only ` +
        `${cursor.fileSize - start} are left in the file; it is cut short or damaged: download or convert it again`,
    );
  }
  if (elementType === arrayTypeId) {
    for (let i = 0; i < count; i++) skipArray(cursor, what, depth + 1);
  } else if (elementType === scalarTypeIds.string) {
    const element = `an element of ${what}`;
    for (let i = 0; i < count; i++) cursor.skipString(element);
  } else if (elementType === scalarTypeIds.bool) {
    skipBools(cursor, count, what);
  } else {
    cursor.skip(count * elementBytes, what);
  }
}

function skipBools(cursor: HeaderCursor, count: number, what: string): void {
  cursor.require(count, what);
  for (const end = cursor.offset + count; cursor.offset < end; cursor.offset++) {
    const byte = cursor.bytes[cursor.offset]!;
    if (byte > 1) throw cursor.error("corrupt", `${what} has a boolean of ${byte}; the format allows 0 and 1`);
  }
}

function readAlignment(cursor: HeaderCursor, { key, typeId, value }: MetadataPlace): number {
  const alignment = typeId === scalarTypeIds.uint32 ? cursor.view.getUint32(value, true) : Number.NaN;
  if (alignment > 0 && (alignment & (alignment - 1)) === 0) return alignment;
  const found = Number.isNaN(alignment) ? `of type ${typeId}` : `${alignment}`;
  throw new GgufError("corrupt", `general.alignment is ${found}; it must be a uint32 and a power of two`, {
    path: cursor.path,
    offset: value,
    key,
  });
}

function readTensorPlace(cursor: HeaderCursor, index: number): TensorPlace {
  const start = cursor.offset;
  const name = cursor.string(`the name of tensor ${index}`);
  if (name === "") {
    cursor.offset = start;
    throw cursor.error("corrupt", `tensor ${index} has no name; convert the model again`);
  }
  const refuse = (offset: number, message: string) =>
    new GgufError("corrupt", `tensor "${name}" ${message}`, { path: cursor.path, offset, tensor: name });
  const dimensions = cursor.u32(`the number of dimensions of tensor "${name}"`);
  if (dimensions === 0 || dimensions > maxDimensions) {
    throw refuse(cursor.offset - 4, `has ${dimensions} dimensions; the format allows 1 to ${maxDimensions}`);
  }
  for (let i = 0; i < dimensions; i++) {
    const length = cursor.u64(`dimension ${i} of tensor "${name}"`);
    if (length === 0 || length > maxDimension) {
      throw refuse(cursor.offset - 8, `has the dimension ${length}; 1 to 2^32 can be read`);
    }
  }
  cursor.skip(4 + 8, `the type and offset of tensor "${name}"`);
  return { name, start };
}
