import { unknownType } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { GgufFile } from "./gguf-file.js";
import { metadataStart } from "./header.js";
import { defaultAlignment } from "./header-layout.js";
import { alignUp, bytesFor, fillsRoom, q2Layouts, q2TypeId, type TensorType, tensorTypes } from "./tensor-type.js";
import { type TensorData, writeFileWhole, writeTensorData } from "./whole-file.js";
import { encodeEntry, encodeString, type WriteValue } from "./write-value.js";

/** A tensor to write. */
export interface TensorToWrite {
  readonly name: string;
  /** Lengths, fastest first: a weight `[in, out]` is `out` rows of `in`. */
  readonly dims: readonly number[];
  readonly type: TensorType;
  readonly data: TensorData;
}

/** The largest page size in use; tensor data is never aligned to more. */
const maxAlignment = 2 ** 21;

/** What a GGUF holds. */
export interface GgufContent {
  /** Values by their keys, or a file whose metadata is copied byte for byte. */
  readonly metadata: Readonly<Record<string, WriteValue>> | GgufFile;
  readonly tensors: readonly TensorToWrite[];
  /**
   * Bytes that tensor data is aligned to, a power of two; unless given, 32 or that of the file whose metadata is copied. Given
   * with values, `general.alignment` is written as well.
   */
  readonly alignment?: number;
}

/**
 * Writes a GGUF of version 3. Tensor data is streamed: no more than one piece of it is in memory. The file appears under
 * `path` when it is complete, in place of an older one; on failure nothing is left behind.
 *
 * @throws GgufError `invalid-argument` for metadata that does not fit its type, dimensions that do not fit the tensor's
 *   type, or data that is not exactly as long as they say; `unwritable` if the file cannot be written
 */
export async function writeGguf(path: string, content: GgufContent): Promise<void> {
  const { metadata, tensors } = content;
  const copied = metadata instanceof GgufFile ? metadata.alignment : defaultAlignment;
  const alignment = checkAlignment(content.alignment ?? copied);
  const sizes = tensors.map((tensor) => checkTensor(tensor, alignment));
  const entries = metadata instanceof GgufFile ? await copy(metadata, alignment) : encode(metadata, alignment);
  const header = encodeHeader(entries, tensors, alignment, sizes);
  await writeFileWhole(path, async (write) => {
    await write(header);
    for (const [i, tensor] of tensors.entries()) {
      const subject = `${tensor.type} with the dimensions [${tensor.dims.join(", ")}]`;
      await writeTensorData(write, tensor, sizes[i]!, subject);
      await write(new Uint8Array(alignUp(sizes[i]!, alignment) - sizes[i]!));
    }
  });
}

function checkAlignment(alignment: number): number {
  if (Number.isInteger(Math.log2(alignment)) && alignment >= 1 && alignment <= maxAlignment) return alignment;
  throw new GgufError("invalid-argument", `alignment is ${alignment}; pass a power of two up to ${maxAlignment}`);
}

/** Checks all but the data; returns the number of bytes the data must have. */
function checkTensor({ name, dims, type }: TensorToWrite, alignment: number): number {
  const info = tensorTypes[type];
  if (info === undefined) throw unknownType("writeGguf", type);
  const refuse = (message: string) =>
    new GgufError("invalid-argument", `the tensor "${name}" cannot be written: ${message}`, { tensor: name });
  if (name === "" || /\p{Surrogate}/u.test(name)) throw refuse("it needs a name of whole characters");
  const count = dims.reduce((product, length) => product * length, 1);
  const areLengths = dims.every((length) => Number.isInteger(length) && length >= 1 && length <= 2 ** 32);
  if (dims.length < 1 || dims.length > 4 || !areLengths || !Number.isSafeInteger(count)) {
    throw refuse(`its dimensions are [${dims.join(", ")}]; pass 1 to 4 positive integers`);
  }
  const rowLength = dims[0]!;
  if (rowLength % info.blockSize !== 0) {
    throw refuse(
      `its rows of ${rowLength} are no multiple of ${info.blockSize}, the block of ${type}; use another type`,
    );
  }
  const byteLength = bytesFor(info, count)!;
  // The padding of a tiny tensor can hide which of the two layouts it has: a file nobody can read for sure.
  const room = alignUp(byteLength, alignment);
  const alike = q2Layouts(count, rowLength).filter((layout) => fillsRoom(layout.byteLength, room, alignment, false));
  if (info.id === q2TypeId && alike.length > 1) {
    throw refuse(
      `with ${count} weights and alignment ${alignment} the two layouts of type 42 look alike; use PQ2_0 or F16`,
    );
  }
  return byteLength;
}

/** Metadata as it stands in a file. */
interface Entries {
  readonly count: number;
  readonly bytes: readonly Uint8Array[];
}

function encode(metadata: Readonly<Record<string, WriteValue>>, alignment: number): Entries {
  const { "general.alignment": ownAlignment = alignment, ...rest } = metadata;
  checkOwnAlignment(ownAlignment, alignment);
  const isWritten = alignment !== defaultAlignment || "general.alignment" in metadata;
  const entries = Object.entries<WriteValue>(isWritten ? { "general.alignment": alignment, ...rest } : rest);
  return { count: entries.length, bytes: entries.map(([key, value]) => encodeEntry(key, value)) };
}

async function copy(file: GgufFile, alignment: number): Promise<Entries> {
  checkOwnAlignment(file.alignment, alignment);
  return { count: file.metadata.size, bytes: [await file.readMetadata()] };
}

function checkOwnAlignment(ownAlignment: WriteValue, alignment: number): void {
  if (ownAlignment === alignment) return;
  throw new GgufError(
    "invalid-argument",
    `the metadata key "general.alignment" is ${JSON.stringify(ownAlignment)}, but the file is aligned to ${alignment}; ` +
      "pass the number as `alignment`",
    { key: "general.alignment" },
  );
}

function encodeHeader(
  entries: Entries,
  tensors: readonly TensorToWrite[],
  alignment: number,
  sizes: readonly number[],
): Uint8Array {
  const names = new Set(tensors.map(({ name }) => name));
  if (names.size < tensors.length) {
    const twice = tensors.find(({ name }, i) => tensors.findIndex((other) => other.name === name) < i)!;
    throw new GgufError("invalid-argument", `the tensor "${twice.name}" stands twice; names must differ`, {
      tensor: twice.name,
    });
  }
  const start = Buffer.alloc(metadataStart);
  start.write("GGUF");
  start.writeUInt32LE(3, 4);
  start.writeBigUInt64LE(BigInt(tensors.length), 8);
  start.writeBigUInt64LE(BigInt(entries.count), 16);
  let offset = 0;
  const infos = tensors.map((tensor, i) => {
    const info = encodeInfo(tensor, offset);
    offset += alignUp(sizes[i]!, alignment);
    return info;
  });
  const parts = [start, ...entries.bytes, ...infos];
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return Buffer.concat(parts, alignUp(length, alignment));
}

function encodeInfo({ name, dims, type }: TensorToWrite, offset: number): Buffer {
  const shape = Buffer.alloc(4 + 8 * dims.length + 4 + 8);
  shape.writeUInt32LE(dims.length);
  dims.forEach((length, i) => {
    shape.writeBigUInt64LE(BigInt(length), 4 + 8 * i);
  });
  shape.writeUInt32LE(tensorTypes[type].id, shape.length - 12);
  shape.writeBigUInt64LE(BigInt(offset), shape.length - 8);
  return Buffer.concat([encodeString(name), shape]);
}
