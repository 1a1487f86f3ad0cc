/**
 * Names of the tensor types whose bytes this package can (de)quantize. `Q2_0` has blocks of 64 weights (id 42);
 * `Q2_0_G128` is the older layout with blocks of 128 under the same id, told apart by the tensor's size in bytes; `PQ2_0`
 * has the same bytes as `Q2_0_G128` under an id of its own (142).
 */
export type TensorType = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q1_0" | "Q2_0" | "Q2_0_G128" | "PQ2_0";

/** How a tensor type is stored: `blockSize` weights take `blockBytes` bytes. */
export interface TensorTypeInfo {
  readonly name: TensorType;
  /** ggml's type id, as it stands in the file. */
  readonly id: number;
  readonly blockSize: number;
  readonly blockBytes: number;
}

/** The types this package reads and writes, by name. */
export const tensorTypes: Readonly<Record<TensorType, TensorTypeInfo>> = {
  F32: { name: "F32", id: 0, blockSize: 1, blockBytes: 4 },
  F16: { name: "F16", id: 1, blockSize: 1, blockBytes: 2 },
  BF16: { name: "BF16", id: 30, blockSize: 1, blockBytes: 2 },
  Q8_0: { name: "Q8_0", id: 8, blockSize: 32, blockBytes: 34 },
  Q4_0: { name: "Q4_0", id: 2, blockSize: 32, blockBytes: 18 },
  Q1_0: { name: "Q1_0", id: 41, blockSize: 128, blockBytes: 18 },
  Q2_0: { name: "Q2_0", id: 42, blockSize: 64, blockBytes: 18 },
  Q2_0_G128: { name: "Q2_0_G128", id: 42, blockSize: 128, blockBytes: 34 },
  PQ2_0: { name: "PQ2_0", id: 142, blockSize: 128, blockBytes: 34 },
};

/** The id that two layouts share. */
export const q2TypeId = 42;

/** What is known of a type id: its name in ggml, its block, and `type` where this package can read it. */
export interface KnownType {
  readonly typeName: string;
  readonly type: TensorType | null;
  readonly blockSize: number;
  readonly blockBytes: number;
}

/** ggml's other types (name, weights in a block, bytes in a block), so that they can be named and measured. */
const unreadableTypes: readonly (readonly [id: number, name: string, blockSize: number, blockBytes: number])[] = [
  [3, "Q4_1", 32, 20],
  [6, "Q5_0", 32, 22],
  [7, "Q5_1", 32, 24],
  [9, "Q8_1", 32, 36],
  [10, "Q2_K", 256, 84],
  [11, "Q3_K", 256, 110],
  [12, "Q4_K", 256, 144],
  [13, "Q5_K", 256, 176],
  [14, "Q6_K", 256, 210],
  [15, "Q8_K", 256, 292],
  [16, "IQ2_XXS", 256, 66],
  [17, "IQ2_XS", 256, 74],
  [18, "IQ3_XXS", 256, 98],
  [19, "IQ1_S", 256, 50],
  [20, "IQ4_NL", 32, 18],
  [21, "IQ3_S", 256, 110],
  [22, "IQ2_S", 256, 82],
  [23, "IQ4_XS", 256, 136],
  [24, "I8", 1, 1],
  [25, "I16", 1, 2],
  [26, "I32", 1, 4],
  [27, "I64", 1, 8],
  [28, "F64", 1, 8],
  [29, "IQ1_M", 256, 56],
  [34, "TQ1_0", 256, 54],
  [35, "TQ2_0", 256, 66],
  [39, "MXFP4", 32, 17],
  [40, "NVFP4", 64, 36],
];

const typesById: ReadonlyMap<number, KnownType> = new Map<number, KnownType>([
  ...unreadableTypes.map(
    ([id, typeName, blockSize, blockBytes]) => [id, { typeName, type: null, blockSize, blockBytes }] as const,
  ),
  ...Object.values(tensorTypes)
    .filter(({ id }) => id !== q2TypeId)
    .map(({ id, name, blockSize, blockBytes }) => [id, { typeName: name, type: name, blockSize, blockBytes }] as const),
]);

/** What `id` alone says; undefined for an unknown id, and for 42, which two layouts share. */
export function typeById(id: number): KnownType | undefined {
  return typesById.get(id);
}

/** Bytes that `count` weights take, or undefined if they are no whole number of blocks. */
export function bytesFor({ blockSize, blockBytes }: { blockSize: number; blockBytes: number }, count: number) {
  return count % blockSize === 0 ? (count / blockSize) * blockBytes : undefined;
}

/** The smallest multiple of `alignment` that is at least `offset`. */
export function alignUp(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}

/** The layouts under id 42 whose blocks divide rows of `rowLength`, and the bytes `count` weights take in each. */
export function q2Layouts(count: number, rowLength: number) {
  return [tensorTypes.Q2_0, tensorTypes.Q2_0_G128]
    .filter(({ blockSize }) => rowLength % blockSize === 0)
    .map((info) => ({ ...info, byteLength: bytesFor(info, count)! }));
}

/** Whether `byteLength` bytes, padded to the alignment, fill `room`; at the end of a file the padding may be missing. */
export function fillsRoom(byteLength: number, room: number, alignment: number, isLast: boolean): boolean {
  return room === alignUp(byteLength, alignment) || (isLast && room === byteLength);
}
