import type { GgufError } from "./gguf-error.js";
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

// Limits far above any model's.
const maxEntries = 100_000;
const maxArrayDepth = 4;
/** Of all arrays together: an element of one byte in the file takes eight in memory. */
const maxElements = 8_000_000;
const maxDimension = 2 ** 32;
/** ggml's own limit. */
const maxDimensions = 4;
/** The format's own limit for keys. */
const maxNameBytes = 65_535;

/** Alignment of tensor data where `general.alignment` is absent. */
export const defaultAlignment = 32;

/**
 * Follows the structure of the GGUF header under `cursor`, allocating nothing that the file's bytes do not back.
 *
 * @throws GgufError for anything that is not a sound header, with its byte offset
 * @throws MoreBytesNeeded if the header goes on beyond the bytes at hand
 */
export function readHeaderLayout(cursor: HeaderCursor): HeaderLayout {
  checkMagic(cursor);
  const version = readVersion(cursor);
  const tensorCount = readCount(cursor, "tensor", minTensorBytes);
  const keyCount = readCount(cursor, "metadata key", minEntryBytes);

  let alignment = defaultAlignment;
  const metadata: MetadataPlace[] = [];
  const keys = new Set<string>();
  for (let i = 0; i < keyCount; i++) {
    const place = readMetadataPlace(cursor, i);
    if (keys.has(place.key)) {
      throw cursor.error(
        "corrupt",
        `the metadata key "${place.key}" stands twice; convert the model again`,
        place.start,
      );
    }
    keys.add(place.key);
    metadata.push(place);
    if (place.key === "general.alignment") alignment = readAlignment(cursor, place);
    cursor.subject = {};
  }

  const tensorsStart = cursor.offset;
  const tensors: TensorPlace[] = [];
  const names = new Set<string>();
  for (let i = 0; i < tensorCount; i++) {
    const place = readTensorPlace(cursor, i);
    if (names.has(place.name)) {
      throw cursor.error("corrupt", `the tensor "${place.name}" stands twice; convert the model again`, place.start);
    }
    names.add(place.name);
    tensors.push(place);
    cursor.subject = {};
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
  if (swapped >= 1 && swapped <= 0xff) throw wrongEndian(cursor);
  throw cursor.error(
    "unsupported-version",
    `GGUF version ${version} cannot be read, only 2 and 3; ` +
      (version === 1 ? "convert the original model again" : "a newer release of this package may read it"),
  );
}

/** Reads how many of something follow; each takes at least `minBytes`, so that the file bounds the count. */
function readCount(cursor: HeaderCursor, noun: string, minBytes: number): number {
  const start = cursor.offset;
  const count = cursor.u64(`the number of ${noun}s`);
  if (count * minBytes > cursor.fileSize - cursor.offset) {
    throw cursor.error(
      "truncated",
      `the header announces ${count} ${noun}s, which take at least ${count * minBytes} bytes, but the file has only ` +
        `${cursor.fileSize}; it is cut short or damaged: download or convert it again`,
      start,
    );
  }
  if (count > maxEntries) {
    throw cursor.error(
      "corrupt",
      `the header announces ${count} ${noun}s; more than ${maxEntries} are not read`,
      start,
    );
  }
  return count;
}

/** Reads the key and passes over the value; the key stays the cursor's subject. */
function readMetadataPlace(cursor: HeaderCursor, index: number): MetadataPlace {
  const start = cursor.offset;
  const key = readKey(cursor, index);
  cursor.subject = { key };
  const what = `the value of metadata key "${key}"`;
  const typeId = cursor.u32(`the type of metadata key "${key}"`);
  const value = cursor.offset;
  skipValue(cursor, typeId, what);
  return { key, typeId, start, value, end: cursor.offset };
}

function readKey(cursor: HeaderCursor, index: number): string {
  const start = cursor.offset;
  const what = `metadata key ${index}`;
  const key = readName(cursor, what);
  if (!/^[\x20-\x7e]+$/.test(key)) {
    throw cursor.error("corrupt", `${what} is ${JSON.stringify(key)}; the format allows printable ASCII only`, start);
  }
  return key;
}

function readName(cursor: HeaderCursor, what: string): string {
  const start = cursor.offset;
  const length = cursor.u64(`the length of ${what}`);
  if (length === 0 || length > maxNameBytes) {
    throw cursor.error("corrupt", `${what} is ${length} bytes long; 1 to ${maxNameBytes} are allowed`, start);
  }
  cursor.offset = start;
  return cursor.string(what);
}

function skipValue(cursor: HeaderCursor, typeId: number, what: string): void {
  const size = fixedSizes.get(typeId);
  if (typeId === arrayTypeId) {
    skipArray(cursor, what, 0);
  } else if (typeId === scalarTypeIds.string) {
    cursor.string(what);
  } else if (typeId === scalarTypeIds.bool) {
    skipBools(cursor, 1, what);
  } else if (size !== undefined) {
    cursor.skip(size, what);
  } else {
    throw cursor.error("corrupt", `${what} has the type ${typeId}; ${knownTypes}`, cursor.offset - 4);
  }
}

const knownTypes = "GGUF has the types 0 to 12: convert the model again";

function skipArray(cursor: HeaderCursor, what: string, depth: number): void {
  const start = cursor.offset;
  if (depth === maxArrayDepth) {
    throw cursor.error("corrupt", `${what} has arrays nested more than ${maxArrayDepth} deep; that is not read`);
  }
  const elementType = cursor.u32(`the element type of ${what}`);
  if (elementType > scalarTypeIds.float64) {
    throw cursor.error("corrupt", `${what} is an array of type ${elementType}; ${knownTypes}`, start);
  }
  const elementBytes = fixedSizes.get(elementType) ?? (elementType === arrayTypeId ? 12 : 8);
  const count = cursor.u64(`the length of ${what}`);
  if (count * elementBytes > cursor.fileSize - cursor.offset) {
    throw cursor.error(
      "truncated",
      `${what} is an array of ${count} elements, which take at least ${count * elementBytes} bytes, but only ` +
        `${cursor.fileSize - cursor.offset} are left in the file; it is cut short or damaged: download or convert it again`,
      start,
    );
  }
  cursor.arrayElements += count;
  if (cursor.arrayElements > maxElements) {
    throw cursor.error(
      "corrupt",
      `${what} is one of arrays with more than ${maxElements} elements; that is not read`,
      start,
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

function readAlignment(cursor: HeaderCursor, { typeId, value }: MetadataPlace): number {
  if (typeId !== scalarTypeIds.uint32) {
    throw cursor.error("corrupt", `general.alignment has the type ${typeId}; it must be 4, a uint32`, value - 4);
  }
  const alignment = cursor.view.getUint32(value, true);
  if (alignment > 0 && (alignment & (alignment - 1)) === 0) return alignment;
  throw cursor.error("corrupt", `general.alignment is ${alignment}; it must be a power of two`, value);
}

/** Reads the name and passes over the rest of a tensor's entry; the name stays the cursor's subject. */
function readTensorPlace(cursor: HeaderCursor, index: number): TensorPlace {
  const start = cursor.offset;
  const name = readName(cursor, `the name of tensor ${index}`);
  cursor.subject = { tensor: name };
  const what = `tensor "${name}"`;
  const dimensions = cursor.u32(`the number of dimensions of ${what}`);
  if (dimensions === 0 || dimensions > maxDimensions) {
    const message = `${what} has ${dimensions} dimensions; the format allows 1 to ${maxDimensions}`;
    throw cursor.error("corrupt", message, cursor.offset - 4);
  }
  for (let i = 0; i < dimensions; i++) {
    const length = cursor.u64(`dimension ${i} of ${what}`);
    if (length === 0 || length > maxDimension) {
      throw cursor.error("corrupt", `${what} has the dimension ${length}; 1 to 2^32 can be read`, cursor.offset - 8);
    }
  }
  cursor.skip(4 + 8, `the type and offset of ${what}`);
  return { name, start };
}
