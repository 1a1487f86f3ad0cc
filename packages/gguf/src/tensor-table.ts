import type { GGUFTensorInfo } from "@huggingface/gguf";
import { GgufError, type GgufErrorCode } from "./gguf-error.js";
import type { HeaderLayout, TensorPlace } from "./header-layout.js";
import {
  alignUp,
  bytesFor,
  fillsRoom,
  type KnownType,
  q2Layouts,
  q2TypeId,
  type TensorType,
  tensorTypes,
  typeById,
} from "./tensor-type.js";

/** One tensor of a file. */
export interface GgufTensor {
  readonly name: string;
  /** Lengths, fastest first: a weight `[in, out]` is `out` rows of `in`. */
  readonly dims: readonly number[];
  /** The type, or null if this package cannot read it; `typeName` then says what it is. */
  readonly type: TensorType | null;
  /** ggml's id of the type. */
  readonly typeId: number;
  /** The type's name, for people: `Q1_0`, `Q4_K`, `unknown type 99`. */
  readonly typeName: string;
  /** Byte offset of the data from the start of the file. */
  readonly offset: number;
  /** Bytes of data; of a type unknown even by name, the room up to the next tensor. */
  readonly byteLength: number;
}

/**
 * Checks every tensor entry against the file's true size: aligned, inside the file, no two overlapping, whole blocks in
 * every row; and decides which of the two layouts under type id 42 a tensor has, by the room it takes.
 */
export function checkTensors(
  infos: readonly GGUFTensorInfo[],
  layout: HeaderLayout,
  fileSize: number,
  path: string,
): Map<string, GgufTensor> {
  const dataStart = alignUp(layout.end, layout.alignment);
  const entries = infos.map((info, i) => readEntry(info, layout.tensors[i]!, layout.alignment, dataStart, path));
  const byOffset = [...entries].sort((a, b) => a.offset - b.offset);
  const successors = new Map(byOffset.map((entry, i) => [entry, byOffset[i + 1]]));
  const tensors = new Map<string, GgufTensor>();
  for (const entry of entries) {
    tensors.set(entry.name, measure(entry, successors.get(entry), layout.alignment, fileSize));
  }
  return tensors;
}

interface Entry {
  readonly name: string;
  readonly dims: readonly number[];
  readonly count: number;
  readonly typeId: number;
  readonly offset: number;
  readonly refuse: (code: GgufErrorCode, message: string) => GgufError;
}

function readEntry(
  info: GGUFTensorInfo,
  place: TensorPlace,
  alignment: number,
  dataStart: number,
  path: string,
): Entry {
  const { name } = place;
  const refuse = (code: GgufErrorCode, message: string) =>
    new GgufError(code, `tensor "${name}" ${message}`, { path, offset: place.start, tensor: name });
  const dims = info.shape.map(Number);
  const count = dims.reduce((product, length) => product * length, 1);
  if (!Number.isSafeInteger(count)) {
    throw refuse("corrupt", `has the dimensions ${dims.join(" × ")}, more than 2^53 weights`);
  }
  if (info.offset % BigInt(alignment) !== 0n) {
    throw refuse(
      "corrupt",
      `has the offset ${info.offset}, which is no multiple of the file's alignment, ${alignment}; convert the model again`,
    );
  }
  return { name, dims, count, typeId: info.dtype, offset: dataStart + Number(info.offset), refuse };
}

function measure(entry: Entry, next: Entry | undefined, alignment: number, fileSize: number): GgufTensor {
  const { name, dims, count, typeId, offset, refuse } = entry;
  if (offset >= fileSize) {
    throw refuse("truncated", `starts at byte ${offset}, but ${cutShort(fileSize)}`);
  }
  const room = (next?.offset ?? fileSize) - offset;
  const known = typeId === q2TypeId ? q2Type(entry, room, alignment, next === undefined) : typeById(typeId);
  const rowLength = dims[0]!;
  if (known !== undefined && rowLength % known.blockSize !== 0) {
    throw refuse(
      "corrupt",
      `has rows of ${rowLength} weights, which is no multiple of the ${known.blockSize} in a block of ${known.typeName}`,
    );
  }
  const byteLength = known === undefined ? room : bytesFor(known, count)!;
  if (offset + byteLength > fileSize) {
    throw refuse("truncated", `takes the bytes ${offset} to ${offset + byteLength}, but ${cutShort(fileSize)}`);
  }
  if (byteLength > room || room === 0) {
    throw refuse(
      "corrupt",
      `takes the bytes ${offset} to ${offset + byteLength}, where "${next?.name}" starts at ${next?.offset}; ` +
        "the file is damaged: convert the model again",
    );
  }
  const { type = null, typeName = `unknown type ${typeId}` } = known ?? {};
  return { name, dims, type, typeId, typeName, offset, byteLength };
}

function cutShort(fileSize: number): string {
  return `the file ends at ${fileSize}; it is cut short or damaged: download or convert it again`;
}

/** Decides between the two layouts under id 42 by the room the tensor has. */
function q2Type(entry: Entry, room: number, alignment: number, isLast: boolean): KnownType {
  const { dims, count, refuse } = entry;
  const layouts = q2Layouts(count, dims[0]!);
  // Rows that neither layout's blocks divide: the caller says so.
  if (layouts.length === 0) return { ...tensorTypes.Q2_0, type: "Q2_0", typeName: "Q2_0" };
  const fitting = layouts.filter(({ byteLength }) => fillsRoom(byteLength, room, alignment, isLast));
  const [layout] = fitting;
  if (layout !== undefined && fitting.length === 1) return { ...layout, type: layout.name, typeName: layout.name };

  const needs = layouts.map(({ blockSize, byteLength }) => `${byteLength} bytes in blocks of ${blockSize}`).join(", ");
  const found = `of type 42 (Q2_0) and dimensions ${dims.join(" × ")} has room for ${room} bytes, but takes ${needs}`;
  if (layout !== undefined) {
    throw refuse(
      "unsupported-type",
      `${found}, padded to ${alignment}: both fit; write it as PQ2_0 (type 142) or another type`,
    );
  }
  const isShort = isLast && layouts.every(({ byteLength }) => room < byteLength);
  throw refuse(
    isShort ? "truncated" : "unsupported-type",
    `${found}: neither fits; the file is ${isShort ? "cut short" : "damaged, or of an unknown layout"}: download or convert it again`,
  );
}
